//! Memory for bodies that have not come whole: so much for all of them together, and a part of it for each token, so that
//! nobody who sends halves of bodies keeps others out.

use super::problem::Problem;
use crate::config::SchedulerConfig;
use capstan_common::refusal::Refusal;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The part of all that one token may hold: one of so many.
const PART: usize = 2;

/// Bytes that bodies hold, by token and in all.
#[derive(Debug)]
pub struct Budget {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_token: BTreeMap<Arc<str>, usize>,
}

impl Budget {
    /// As configured.
    pub fn new(config: &SchedulerConfig) -> Arc<Self> {
        Self::of(config.bodies_max_bytes)
    }

    fn of(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// A share of nothing yet, for one body of a token.
    pub fn share(self: &Arc<Self>, token: &Arc<str>) -> Share {
        Share { of: self.clone(), token: token.clone(), bytes: 0 }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one body holds; given back when dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Budget>,
    token: Arc<str>,
    bytes: usize,
}

impl Share {
    /// Holds so many bytes from now on.
    ///
    /// # Errors
    /// Others hold what it would need: nothing of the request was accepted.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Problem> {
        if bytes == self.bytes {
            return Ok(());
        }
        let mut held = self.of.held();
        let mine = held.by_token.get(&self.token).copied().unwrap_or(0);
        let (all, own) = (held.all - self.bytes + bytes, mine - self.bytes + bytes);
        if bytes > self.bytes {
            // The first body of a token always has room in its part: one body may be as large as that.
            if own > self.of.most / PART && own > bytes {
                let detail = "the bodies that this token sends hold as much memory as they may; send fewer at once";
                return Err(Refusal::exhausted(detail, 1).into());
            }
            if all > self.of.most && all > bytes {
                let detail = "the bodies that are being sent hold as much memory as they may (scheduler.bodies_max_bytes); nothing was accepted, try again in a moment";
                return Err(Refusal::unavailable(detail, 1).into());
            }
        }
        held.all = all;
        self.bytes = bytes;
        match own {
            0 => drop(held.by_token.remove(&self.token)),
            own => drop(held.by_token.insert(self.token.clone(), own)),
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Giving back is never refused.
        let _ = self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_leaves_room_for_others_and_what_is_given_back_is_free_again() {
        let budget = Budget::of(100);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut first = budget.share(&a);
        first.resize(40).unwrap();
        let mut second = budget.share(&a);
        assert!(second.resize(11).unwrap_err().to_string().contains("this token"));
        second.resize(10).unwrap();
        let mut other = budget.share(&b);
        other.resize(50).unwrap();
        let mut third = budget.share(&"c".into());
        assert!(third.resize(1).is_err());
        first.resize(5).unwrap();
        third.resize(35).unwrap();
        drop((first, second, other, third));
        assert!(budget.held().all == 0 && budget.held().by_token.is_empty());
        // One body alone may be larger than a token's part.
        budget.share(&a).resize(80).unwrap();
    }
}
