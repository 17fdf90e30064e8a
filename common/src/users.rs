//! The users that functions run as: one for each namespace, computed from its name.

use sha2::{Digest, Sha256};

/// The users of functions: numbers from `first`, as many as `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    first: u32,
    count: u32,
}

impl Users {
    /// Reads `FIRST-LAST`.
    ///
    /// # Errors
    /// It is none, or holds users of the system.
    pub fn read(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "worker.function_uids must be FIRST-LAST, two user numbers from 1000 to 2147483647 with at least 100 between \
                 them, is `{text}`"
            )
        };
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first < 1000 || last > i32::MAX as u32 || last.saturating_sub(first) < 100 {
            return Err(wrong());
        }
        Ok(Self { first, count: last - first + 1 })
    }

    /// The user of a namespace: the same on every worker that has the same range.
    pub fn of(self, namespace: &str) -> u32 {
        let hash = Sha256::digest(namespace.as_bytes());
        let drawn = hash.iter().take(8).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        self.first + (drawn % u64::from(self.count)) as u32
    }

    /// Whether a user is one of them.
    pub fn contains(self, user: u32) -> bool {
        user.checked_sub(self.first).is_some_and(|n| n < self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_user_in_the_range_and_wrong_ranges_are_named() {
        let users = Users::read("200000-200999").unwrap();
        for namespace in ["default", "a", "b", "team-7"] {
            let user = users.of(namespace);
            assert!(users.contains(user) && user == users.of(namespace), "{namespace}: {user}");
        }
        assert!(!users.contains(199_999) && !users.contains(201_000) && !users.contains(0));
        assert_ne!(users.of("a"), users.of("b"));
        for wrong in ["", "7", "0-99999", "200000-200010", "200000-100000", "1000-4000000000", "a-b"] {
            assert!(Users::read(wrong).unwrap_err().contains("function_uids"), "{wrong}");
        }
    }
}
