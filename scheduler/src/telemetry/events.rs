//! Events for operators: what happened, told as it happens to those who listen, and kept for a while for those who come back.

use crate::clock;
use capstan_common::id::{ContainerId, FunctionKey};
use capstan_verb::access::Subject;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;

/// Events that a slow listener may fall behind.
const BACKLOG: usize = 1024;
/// Events that are kept.
const KEPT: usize = 8192;
/// Bytes of them.
const KEPT_BYTES: usize = 4 << 20;

/// What an event is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct About<'a> {
    function: Option<&'a FunctionKey>,
    worker: Option<&'a str>,
    container: Option<ContainerId>,
}

impl<'a> About<'a> {
    /// The cluster.
    pub fn cluster() -> Self {
        Self::default()
    }

    /// A function.
    pub fn function(function: &'a FunctionKey) -> Self {
        Self { function: Some(function), ..Self::default() }
    }

    /// A container of a function.
    pub fn container(function: &'a FunctionKey, container: ContainerId) -> Self {
        Self { function: Some(function), container: Some(container), worker: None }
    }

    /// A worker.
    pub fn worker(worker: &'a str) -> Self {
        Self { worker: Some(worker), ..Self::default() }
    }
}

/// Something that happened.
#[derive(Debug)]
pub struct Event {
    /// Its number; later ones have higher ones, also those of a later process.
    pub id: u64,
    /// What kind of thing.
    pub kind: &'static str,
    /// Its function, if it is about one.
    pub function: Option<FunctionKey>,
    /// All of it, as JSON.
    pub text: String,
}

impl Event {
    /// Whether somebody may see it: what is about no namespace concerns the cluster.
    pub fn is_seen_by(&self, who: &Subject) -> bool {
        self.function.as_ref().map_or(who.namespaces.is_none(), |function| who.sees(&function.namespace))
    }
}

/// Where events are told.
pub struct Events(Mutex<Ring>);

struct Ring {
    /// The number of the last event that is not kept any more: what lies before this process counts as told and gone.
    gone: u64,
    last: u64,
    kept: VecDeque<Arc<Event>>,
    bytes: usize,
    listeners: broadcast::Sender<Arc<Event>>,
}

/// What a listener gets.
pub struct Listener {
    /// Events since the one that it knows.
    pub before: Vec<Arc<Event>>,
    /// Whether some of those are not kept any more.
    pub has_gap: bool,
    /// What happens from now on.
    pub news: broadcast::Receiver<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        let now = clock::now().0;
        let listeners = broadcast::channel(BACKLOG).0;
        Self(Mutex::new(Ring { gone: now, last: now, kept: VecDeque::new(), bytes: 0, listeners }))
    }
}

impl Events {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all listeners.
    pub fn tell(&self, kind: &'static str, About { function, worker, container }: About<'_>, facts: Value) {
        let at = clock::now();
        let mut ring = self.ring();
        // Microseconds, so that numbers grow from one process to the next, and never twice the same.
        let id = at.0.max(ring.last + 1);
        let text = json!({
            "id": id, "at": clock::rfc3339(at), "kind": kind, "namespace": function.map(|f| &f.namespace),
            "function": function.map(|f| &f.name), "worker": worker, "container": container, "facts": facts,
        });
        let event = Arc::new(Event { id, kind, function: function.cloned(), text: text.to_string() });
        ring.keep(event.clone());
        // There may be none.
        let _ = ring.listeners.send(event);
    }

    /// Listens from now on, and to what came after `after` first.
    pub fn listen(&self, after: Option<u64>) -> Listener {
        let ring = self.ring();
        let after_that = |event: &&Arc<Event>| after.is_some_and(|after| event.id > after);
        Listener {
            before: ring.kept.iter().filter(after_that).cloned().collect(),
            has_gap: after.is_some_and(|after| after < ring.gone),
            news: ring.listeners.subscribe(),
        }
    }
}

impl Ring {
    fn keep(&mut self, event: Arc<Event>) {
        self.last = event.id;
        self.bytes += event.text.len();
        self.kept.push_back(event);
        while self.kept.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.kept.pop_front() else { return };
            self.bytes -= oldest.text.len();
            self.gone = oldest.id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_comes_back_misses_nothing_that_is_kept_and_is_told_what_is_not() {
        let events = Events::default();
        let key = FunctionKey::new("n", "f");
        let mut first = events.listen(None);
        for n in 0..3 {
            events.tell("scaled", About::function(&key), json!({"to": n}));
        }
        let known = first.news.try_recv().unwrap();
        let again = events.listen(Some(known.id));
        assert_eq!((again.before.len(), again.has_gap), (2, false));
        assert!(again.before.is_sorted_by_key(|event| event.id));
        // What a process before this one told is gone.
        assert!(events.listen(Some(known.id - 3_600_000_000)).has_gap);
        let facts = json!("x".repeat(100 << 10));
        for _ in 0..100 {
            events.tell("waiting", About::function(&key), facts.clone());
        }
        let late = events.listen(Some(known.id));
        assert!(late.has_gap && late.before.iter().map(|event| event.text.len()).sum::<usize>() <= KEPT_BYTES);
    }

    #[test]
    fn events_are_seen_by_those_whose_namespace_they_are_about() {
        let events = Events::default();
        let mut listener = events.listen(None);
        events.tell("scaled", About::function(&FunctionKey::new("mine", "f")), json!({}));
        events.tell("worker_joined", About::worker("w"), json!({}));
        let role = capstan_verb::access::Role::Read;
        let here = Subject { role, namespaces: Some(["mine".into()].into()) };
        let elsewhere = Subject { role, namespaces: Some(["theirs".into()].into()) };
        let everywhere = Subject { role, namespaces: None };
        let seen = |event: &Event| [&here, &elsewhere, &everywhere].map(|who| event.is_seen_by(who));
        assert_eq!(seen(&listener.news.try_recv().unwrap()), [true, false, true]);
        assert_eq!(seen(&listener.news.try_recv().unwrap()), [false, false, true]);
    }
}
