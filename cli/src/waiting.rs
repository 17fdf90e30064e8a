//! Why a command still waits: nobody should wait in silence.

use crate::{client::Client, output};
use serde_json::Value;
use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a command may be silent before it says why.
const SILENCE: Duration = Duration::from_secs(2);
/// The pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// When something last came, so that a command that gets on says nothing.
#[derive(Clone)]
pub struct Progress(Instant, Arc<AtomicU64>);

impl Default for Progress {
    fn default() -> Self {
        Self(Instant::now(), Arc::default())
    }
}

impl Progress {
    /// Something came.
    pub fn made(&self) {
        self.1.store(self.0.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        self.0.elapsed().saturating_sub(Duration::from_millis(self.1.load(Ordering::Relaxed)))
    }
}

/// Does what takes as long as it takes, and says on standard error why a function's inputs wait: after two silent seconds, and
/// again when that changes.
pub async fn told<T>(client: &Client, function: &str, progress: &Progress, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut last = String::new();
    let mut pause = SILENCE;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LOOK;
        if progress.silent_for() < SILENCE {
            continue;
        }
        let path = client.function(function, "explain");
        let asked = client.get(&path);
        let answer = tokio::select! {
            biased;
            done = &mut work => return done,
            answer = tokio::time::timeout(SILENCE, asked) => answer,
        };
        // What cannot be asked is not known; the work itself says what is wrong.
        let Ok(Ok(answer)) = answer else { continue };
        if let Some(why) = sentence(&answer["waiting"]).filter(|why| *why != last) {
            output::say(format!("waiting: {why}"));
            last = why;
        }
    }
}

/// Why inputs wait, if they do: the reason's code and its sentence.
fn sentence(waiting: &Value) -> Option<String> {
    Some(format!("{}: {}", waiting["code"].as_str()?, waiting["detail"].as_str().unwrap_or_default()))
}
