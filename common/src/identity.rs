//! How schedulers and workers name themselves to each other in certificates.

/// The name by which every scheduler is known to workers.
pub const SCHEDULER: &str = "scheduler.capstan.internal";

/// A worker's name in its certificate: any name of a worker, as one that certificates can carry.
pub fn worker(name: &str) -> String {
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    // A label has at most 63 characters; long names are cut into several.
    let labels: Vec<&str> = hex.as_bytes().chunks(60).filter_map(|chunk| std::str::from_utf8(chunk).ok()).collect();
    format!("w{}.worker.capstan.internal", labels.join(".w"))
}

/// What a join token says: `join_ID_SECRET_AUTHORITY`, the last part the SHA-256 of the authority's certificate in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Its id and its secret.
    pub claim: String,
    /// The fingerprint of the authority that a scheduler must show.
    pub authority: [u8; 32],
}

impl JoinToken {
    /// Reads one.
    pub fn read(text: &str) -> Option<Self> {
        let (claim, authority) = text.trim().strip_prefix("join_")?.rsplit_once('_')?;
        let mut bytes = [0; 32];
        if authority.len() != 64 || !authority.is_ascii() || !claim.contains('_') {
            return None;
        }
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&authority[2 * n..2 * n + 2], 16).ok()?;
        }
        Some(Self { claim: claim.into(), authority: bytes })
    }

    /// Writes it.
    pub fn write(&self) -> String {
        let authority: String = self.authority.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("join_{}_{authority}", self.claim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_that_certificates_can_carry_and_no_two_are_the_same() {
        for name in ["worker-1", "Über worker_ä", &"x".repeat(100)] {
            let written = worker(name);
            assert!(
                written.split('.').all(|label| label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric()))
            );
        }
        assert_ne!(worker("a.b"), worker("a_b"));
    }

    #[test]
    fn join_tokens_read_back_and_others_are_none() {
        let token = JoinToken { claim: "id_secret".into(), authority: [7; 32] };
        assert_eq!(JoinToken::read(&token.write()), Some(token));
        for wrong in ["", "join_", "join_a_b", "join_id_secret_zz", "cap_x"] {
            assert_eq!(JoinToken::read(wrong), None, "{wrong}");
        }
    }
}
