//! Requests of models, counted by the second, so that their number in the last minutes or hours can be told.

use capstan_common::time::Time;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

/// Seconds that are kept.
const KEPT_S: u64 = 24 * 3600;
/// Models that are known at one time, about.
const MODELS: usize = 20_000;

#[derive(Debug, Default)]
struct Model {
    total: u64,
    /// All requests after this are counted here; some before it may have been counted elsewhere.
    since: Time,
    /// Seconds with requests, the oldest first.
    seconds: VecDeque<(u64, u64)>,
}

/// Successful requests by namespace and model.
#[derive(Debug, Default)]
pub struct Models(Mutex<BTreeMap<(String, String), Model>>);

impl Models {
    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Model>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model exists, and all its requests after `since` are counted here: there may be none.
    pub fn know(&self, namespace: &str, model: &str, since: Time) {
        let mut table = self.table();
        if table.len() >= MODELS {
            // Those that nobody has asked for in a day: a function of one that is still there makes it known again.
            table.retain(|_, model| !model.seconds.is_empty());
        }
        let model = table.entry((namespace.into(), model.into())).or_default();
        model.since = model.since.max(since);
    }

    /// Requests succeeded.
    pub fn add(&self, namespace: &str, model: &str, count: u64, now: Time) {
        let second = now.0 / 1_000_000;
        let mut table = self.table();
        let model = table.entry((namespace.into(), model.into())).or_default();
        model.total += count;
        match model.seconds.back_mut() {
            Some((at, sum)) if *at == second => *sum += count,
            _ => model.seconds.push_back((second, count)),
        }
        while model.seconds.front().is_some_and(|(at, _)| at + KEPT_S < second) {
            model.seconds.pop_front();
        }
    }

    /// All models: namespace, name, and requests in all.
    pub fn totals(&self) -> Vec<(String, String, u64)> {
        self.table().iter().map(|((ns, model), m)| (ns.clone(), model.clone(), m.total)).collect()
    }

    /// Requests of a model in the last `seconds`; `None` if that is not known: of a model that is not, of times that another
    /// life of the scheduler, or another one, has counted, or of more than a day (SPEC D9: unknown is not zero).
    pub fn within(&self, namespace: &str, model: &str, seconds: u64, now: Time) -> Option<u64> {
        let from = (now.0 / 1_000_000).saturating_sub(seconds);
        let table = self.table();
        let model = table.get(&(namespace.to_owned(), model.to_owned()))?;
        if from < model.since.0 / 1_000_000 || seconds > KEPT_S {
            return None;
        }
        Some(model.seconds.iter().rev().take_while(|(at, _)| *at >= from).map(|(_, count)| count).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_within_a_time_and_unknown_is_not_zero() {
        let models = Models::default();
        let at = |s: u64| Time(s * 1_000_000);
        models.know("a", "idle", Time(0));
        models.know("a", "inherited", at(100));
        models.add("a", "m", 2, at(100));
        models.add("a", "m", 3, at(100));
        models.add("a", "m", 1, at(400));
        assert_eq!(models.within("a", "m", 600, at(500)), Some(6));
        assert_eq!(models.within("a", "m", 200, at(500)), Some(1));
        assert_eq!(models.within("a", "idle", 600, at(500)), Some(0));
        assert_eq!(models.within("b", "m", 600, at(500)), None);
        assert_eq!(models.within("a", "inherited", 600, at(500)), None, "what was before is not known");
        assert_eq!(models.within("a", "inherited", 400, at(500)), Some(0));
        assert_eq!(models.within("a", "idle", KEPT_S + 1, at(500_000)), None);
    }
}
