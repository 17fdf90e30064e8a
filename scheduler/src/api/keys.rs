//! Idempotency keys that are remembered, by token: each costs memory and a record for a day, so that there is a bound to them.

use crate::config::SchedulerConfig;
use capstan_common::{id::FunctionKey, refusal::Refusal};
use capstan_verb::call::Terms;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Keys of all tokens.
#[derive(Debug)]
pub struct Keys {
    most: usize,
    lifetime: Duration,
    tables: Mutex<BTreeMap<Arc<str>, Table>>,
}

/// Keys of one token, by their hashes, and when each came.
#[derive(Debug, Default)]
struct Table {
    live: BTreeSet<u64>,
    came: VecDeque<(Instant, u64)>,
}

impl Keys {
    /// As configured.
    pub fn new(config: &SchedulerConfig) -> Self {
        let limits = &config.limits;
        Self::of(limits.keys_per_token, Duration::from_secs(limits.idempotency_s))
    }

    fn of(most: usize, lifetime: Duration) -> Self {
        Self { most, lifetime, tables: Mutex::default() }
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Table>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key is about to be used; one that is known already counts once.
    fn claim(self: &Arc<Self>, token: &Arc<str>, key: u64, now: Instant) -> Result<Claim, Refusal> {
        let mut tables = self.tables();
        let table = tables.entry(token.clone()).or_default();
        while let Some((came, oldest)) = table.came.front().copied()
            && now.duration_since(came) > self.lifetime
        {
            table.came.pop_front();
            table.live.remove(&oldest);
        }
        let new = !table.live.contains(&key);
        if new && table.live.len() >= self.most {
            let detail = format!(
                "this token has {} idempotency keys that are remembered, as many as it may have (limits.keys_per_token); send it without one, or later",
                table.live.len()
            );
            return Err(Refusal::exhausted(detail, 60));
        }
        if new {
            table.live.insert(key);
            table.came.push_back((now, key));
        }
        Ok(Claim { keys: self.clone(), token: token.clone(), key: new.then_some(key) })
    }
}

/// A key in use; `None` where it was in use before.
#[derive(Debug)]
pub struct Claim {
    keys: Arc<Keys>,
    token: Arc<str>,
    key: Option<u64>,
}

impl Claim {
    /// Claims the key that came with inputs by a verb, if there is one. `by`: whose it is.
    ///
    /// # Errors
    /// They have too many.
    pub fn of(
        keys: &Arc<Keys>,
        by: &Arc<str>,
        (verb, function): (&str, &FunctionKey),
        terms: &Terms,
    ) -> Result<Option<Self>, Refusal> {
        let Some(key) = &terms.key else { return Ok(None) };
        let mut hasher = DefaultHasher::new();
        (function, key, verb).hash(&mut hasher);
        keys.claim(by, hasher.finish(), Instant::now()).map(Some)
    }

    /// The request was refused: its key is not remembered.
    pub fn undo(claim: &Option<Self>) {
        let Some((claim, key)) = claim.as_ref().and_then(|claim| Some((claim, claim.key?))) else { return };
        if let Some(table) = claim.keys.tables().get_mut(&claim.token) {
            table.live.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_so_many_keys_and_used_ones_come_free_again() {
        let keys = Arc::new(Keys::of(2, Duration::from_secs(10)));
        let (token, start) = (Arc::from("a"), Instant::now());
        let claim = |key, at| keys.claim(&token, key, start + Duration::from_secs(at)).map(Some);
        claim(1, 0).unwrap();
        claim(1, 1).unwrap();
        Claim::undo(&claim(9, 1).unwrap());
        claim(2, 2).unwrap();
        assert!(claim(3, 3).is_err());
        claim(2, 4).unwrap();
        claim(3, 11).unwrap();
    }
}
