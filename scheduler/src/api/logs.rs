//! What containers wrote, page by page.

use super::Api;
use crate::{
    route::{Granted, Run},
    telemetry::logs::{Of, Page},
};
use capstan_common::{refusal::Refusal, time::Time};
use capstan_verb::{
    container, function,
    log::{LogsView, Part},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The longest wait for output.
const WAIT_MAX: Duration = Duration::from_secs(30);

impl Api {
    async fn output(&self, of: &Of, part: Part) -> LogsView {
        let (since, until) = (
            Time(part.since_ms.saturating_mul(1000)),
            Instant::now() + Duration::from_millis(part.wait_ms).min(WAIT_MAX),
        );
        // Listened to before the first look: what comes in between is not missed.
        let logs = &self.telemetry().logs;
        let mut changes = logs.changes();
        loop {
            changes.borrow_and_update();
            let page = logs.read(of, part.after, since);
            let Some(Page { chunks, next, has_more, ended }) = page else {
                return LogsView { ended: true, next: part.after, ..LogsView::default() };
            };
            if !chunks.is_empty() || ended || Instant::now() >= until || self.stopping().is_cancelled() {
                return LogsView { chunks, next, has_more, ended };
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(until) => {}
                () = self.stopping().cancelled() => {}
            }
        }
    }
}

impl Run<container::Logs> for Api {
    async fn run(self: &Arc<Self>, mut ask: Granted<container::Logs>) -> Result<LogsView, Refusal> {
        ask.waits();
        self.must_see_output(&ask.who, ask.verb.container)?;
        Ok(self.output(&Of::Container(ask.verb.container), ask.verb.part).await)
    }
}

impl Run<function::Logs> for Api {
    async fn run(self: &Arc<Self>, mut ask: Granted<function::Logs>) -> Result<LogsView, Refusal> {
        ask.waits();
        let key = self.find(ask.verb.key.clone()).await?;
        self.ask(&key, |_| ()).await?;
        Ok(self.output(&Of::Function(key), ask.verb.part).await)
    }
}
