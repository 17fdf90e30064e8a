//! Events for operators, told as they happen to whoever listens.

use crate::clock;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::broadcast;

/// Events that a slow listener may fall behind.
const BACKLOG: usize = 1024;

/// Where events are told.
pub struct Events(broadcast::Sender<Arc<str>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Tells all listeners; costs nothing where there are none.
    pub fn tell(&self, kind: &str, facts: Value) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let text = json!({"at": clock::rfc3339(clock::now()), "kind": kind, "facts": facts}).to_string();
        // The last listener may have just left.
        let _ = self.0.send(text.into());
    }

    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.subscribe()
    }
}
