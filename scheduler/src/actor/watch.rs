//! Who waits for what of a call.

use capstan_common::{call::CallState, id::CallId};
use capstan_scheduler_core::record::Entry;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;

/// News of a call, in order, each durable before it is told.
#[derive(Debug, Clone)]
pub enum Update {
    /// Inputs ended.
    Ended(Arc<Vec<Entry>>),
    /// A map may send so many more inputs.
    Credit(u64),
    /// The call ended.
    Closed(CallState),
}

/// Where news go. A watcher that falls this far behind is dropped; it can read the results from the store.
pub type Watcher = mpsc::Sender<Update>;
/// News that may wait for a watcher.
pub const WATCH_BACKLOG: usize = 8192;

/// Watchers by call.
#[derive(Default)]
pub struct Watchers(BTreeMap<CallId, Vec<Watcher>>);

impl Watchers {
    /// Adds one.
    pub fn add(&mut self, call: CallId, watcher: Watcher) {
        let watchers = self.0.entry(call).or_default();
        // Those that gave up waiting are not told, only forgotten.
        watchers.retain(|watcher| !watcher.is_closed());
        watchers.push(watcher);
    }

    /// Tells all watchers of a call; those that are gone or too far behind leave.
    pub fn tell(&mut self, call: CallId, update: &Update) {
        let Some(watchers) = self.0.get_mut(&call) else { return };
        watchers.retain(|watcher| watcher.try_send(update.clone()).is_ok());
        if watchers.is_empty() || matches!(update, Update::Closed(_)) {
            self.0.remove(&call);
            if self.0.is_empty() {
                // An empty map keeps its memory.
                self.0 = BTreeMap::new();
            }
        }
    }
}
