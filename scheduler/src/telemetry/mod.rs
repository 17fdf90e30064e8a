//! What is seen from outside: metrics, events, traces, logs of containers.

pub mod events;
pub mod logs;
pub mod metrics;
pub mod models;
pub mod trace;

pub use metrics::Metrics;

use crate::clock;
use capstan_common::{
    container::Phase,
    id::{CallId, ContainerId, FunctionKey},
    time::Time,
};
use capstan_scheduler_core::record::Entry;
use events::{About, Events};
use logs::Logs;
use models::Models;
use serde_json::json;
use std::sync::Arc;
use trace::Tracer;

/// All that is seen from outside of one scheduler.
pub struct Telemetry {
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// What happened, as it happens.
    pub events: Events,
    /// Containers' output.
    pub logs: Logs,
    /// Requests of models.
    pub models: Models,
    /// One trace an input, where a collector is named.
    pub tracer: Option<Tracer>,
}

impl Telemetry {
    /// Nothing yet; traces go where the environment says.
    pub fn from_env() -> Self {
        Self {
            metrics: Arc::default(),
            events: Events::default(),
            logs: Logs::default(),
            models: Models::default(),
            tracer: Tracer::from_env(),
        }
    }

    /// A container became ready.
    pub fn started(&self, function: &FunctionKey, container: ContainerId, decided: Time, phases: &[Phase]) {
        self.metrics.cold_start(function, decided, phases);
        if let Some(tracer) = &self.tracer {
            tracer.started(container, decided, phases);
        }
        let phases: serde_json::Map<_, _> = phases.iter().map(|p| (p.name.clone(), json!(p.us))).collect();
        self.events.tell("container_ready", About::container(function, container), json!({"phases_us": phases}));
    }

    /// A container died before it was ready.
    pub fn start_failed(&self, function: &FunctionKey, container: ContainerId, detail: &str) {
        self.metrics.start_failures.inc();
        tracing::warn!(%function, %container, detail, "a container did not start");
        self.events.tell("container_start_failed", About::container(function, container), json!({"detail": detail}));
    }

    /// A container ended.
    pub fn ended(&self, function: &FunctionKey, container: ContainerId, detail: &str) {
        self.logs.end(container, function);
        if let Some(tracer) = &self.tracer {
            tracer.ended(container);
        }
        self.events.tell("container_ended", About::container(function, container), json!({"detail": detail}));
    }

    /// Scaling was decided.
    pub fn scaled(&self, function: &FunctionKey, from: u32, to: u32, reason: &'static str) {
        self.metrics.scaled(reason);
        tracing::debug!(%function, from, to, reason, "scaled");
        self.events.tell("scaled", About::function(function), json!({"from": from, "to": to, "reason": reason}));
    }

    /// A call ended, durably, after its last input.
    pub fn closed(&self, call: CallId) {
        if let Some(tracer) = &self.tracer {
            tracer.forget(call);
        }
    }

    /// Inputs ended, durably.
    pub fn settled(&self, function: &FunctionKey, model: Option<&str>, call: CallId, entries: &[Entry]) {
        self.metrics.settled(entries);
        if let Some(model) = model {
            let succeeded = entries.iter().filter(|e| e.outcome.is_success()).map(|e| e.count).sum();
            self.models.add(&function.namespace, model, succeeded, clock::now());
        }
        if let Some(tracer) = &self.tracer {
            tracer.settled(function, call, entries);
        }
    }
}
