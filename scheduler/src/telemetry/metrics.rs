//! Metrics in Prometheus form.

use crate::clock;
use capstan_common::{container::Phase, id::FunctionKey, input::Outcome, time::Time, worker::WorkerState};
use capstan_scheduler_core::record::Entry;
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use serde::Serialize;

/// Labels of numbers of one function.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FunctionLabel {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub function: String,
}

impl FunctionLabel {
    /// A function's.
    pub fn of(function: &FunctionKey) -> Self {
        Self { namespace: function.namespace.to_string(), function: function.name.to_string() }
    }
}

/// Labels of containers by state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ContainerLabel {
    /// Namespace of their function.
    pub namespace: String,
    /// Their function.
    pub function: String,
    /// Their state.
    pub state: String,
}

/// One label: a kind out of a closed list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// The kind.
    pub kind: String,
}

/// Labels of the REST interface's answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiLabel {
    /// The route's template.
    pub route: String,
    /// The answer's status.
    pub status: u16,
}

/// A state as a label: as REST writes it.
pub fn state_label(state: impl Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(String::from)).unwrap_or_default()
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 21))
}

/// All metrics of one scheduler.
pub struct Metrics {
    registry: Registry,
    /// Inputs that wait, a function.
    pub queue_depth: Family<FunctionLabel, Gauge>,
    /// Inputs that run, a function.
    pub running: Family<FunctionLabel, Gauge>,
    /// Containers by function and state.
    pub containers: Family<ContainerLabel, Gauge>,
    /// Containers wanted, a function.
    pub desired: Family<FunctionLabel, Gauge>,
    /// Workers by state.
    pub workers: Family<KindLabel, Gauge>,
    /// Outcomes that came too late.
    pub late_outcomes: Counter,
    /// Starts that failed.
    pub start_failures: Counter,
    /// API latency by route and status.
    pub api: Family<ApiLabel, Histogram>,
    outcomes: Family<KindLabel, Counter>,
    cold_starts: Family<FunctionLabel, Counter>,
    models_to_zero: Family<FunctionLabel, Counter>,
    cold_start: Histogram,
    cold_start_phase: Family<KindLabel, Histogram>,
    decisions: Family<KindLabel, Counter>,
    commit: Histogram,
    commit_changes: Counter,
    queued: Histogram,
    run: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("capstan"),
            queue_depth: Family::default(),
            running: Family::default(),
            containers: Family::default(),
            desired: Family::default(),
            workers: Family::default(),
            late_outcomes: Counter::default(),
            start_failures: Counter::default(),
            api: Family::new_with_constructor(seconds),
            outcomes: Family::default(),
            cold_starts: Family::default(),
            models_to_zero: Family::default(),
            cold_start: seconds(),
            cold_start_phase: Family::new_with_constructor(seconds),
            decisions: Family::default(),
            commit: seconds(),
            commit_changes: Counter::default(),
            queued: seconds(),
            run: seconds(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("queue_depth", "Inputs waiting for a container or a retry", self.queue_depth.clone());
        r.register("running_inputs", "Inputs held by containers", self.running.clone());
        r.register("containers", "Containers by state", self.containers.clone());
        r.register("desired_containers", "Containers that the sizing rule wants", self.desired.clone());
        r.register("workers", "Workers by state", self.workers.clone());
        r.register("late_outcomes", "Outcomes dropped because their lease had ended", self.late_outcomes.clone());
        r.register("start_failures", "Containers that died before they were ready", self.start_failures.clone());
        r.register("outcomes", "Inputs ended, by kind of end", self.outcomes.clone());
        r.register("cold_starts", "Containers that became ready", self.cold_starts.clone());
        r.register("model_scaled_to_zero", "Decisions to let a model's last container go", self.models_to_zero.clone());
        r.register("scale_decisions", "Scale decisions by reason", self.decisions.clone());
        r.register("committed_changes", "Changes made durable", self.commit_changes.clone());
        let timed = [
            ("cold_start", "From the decision to a ready container", self.cold_start.clone()),
            ("commit_latency", "One synced group commit", self.commit.clone()),
            ("queued", "From an input's arrival to its last lease", self.queued.clone()),
            ("run", "Running time of an input's last attempt", self.run.clone()),
        ];
        for (name, help, histogram) in timed {
            r.register_with_unit(name, help, Unit::Seconds, histogram);
        }
        r.register_with_unit("cold_start_phase", "Parts of a cold start", Unit::Seconds, self.cold_start_phase.clone());
        r.register_with_unit("api_latency", "REST answers, to the first byte", Unit::Seconds, self.api.clone());
    }

    /// Workers are in these states now.
    pub fn count_workers(&self, states: impl Iterator<Item = WorkerState>) {
        self.workers.clear();
        for state in states {
            self.workers.get_or_create(&KindLabel { kind: state_label(state) }).inc();
        }
    }

    /// A group was committed.
    pub fn committed(&self, us: u64, changes: usize) {
        self.commit.observe(us as f64 / 1e6);
        self.commit_changes.inc_by(changes as u64);
    }

    /// A container became ready.
    pub fn cold_start(&self, function: &FunctionKey, decided: Time, phases: &[Phase]) {
        self.cold_starts.get_or_create(&FunctionLabel::of(function)).inc();
        self.cold_start.observe(clock::now().since_us(decided) as f64 / 1e6);
        for phase in phases {
            let label = KindLabel { kind: phase.name.clone() };
            self.cold_start_phase.get_or_create(&label).observe(phase.us as f64 / 1e6);
        }
    }

    /// A model's last container is to go.
    pub fn model_to_zero(&self, function: &FunctionKey) {
        self.models_to_zero.get_or_create(&FunctionLabel::of(function)).inc();
    }

    /// A function is gone, and its own counters with it.
    pub fn forget(&self, function: &FunctionKey) {
        let label = FunctionLabel::of(function);
        self.cold_starts.remove(&label);
        self.models_to_zero.remove(&label);
    }

    /// Scaling was decided.
    pub fn scaled(&self, reason: &'static str) {
        self.decisions.get_or_create(&KindLabel { kind: reason.into() }).inc();
    }

    /// Inputs ended.
    pub fn settled(&self, entries: &[Entry]) {
        for entry in entries {
            let kind = match &entry.outcome {
                Outcome::Succeeded(_) => "succeeded",
                Outcome::Failed(failure) => failure.kind.code(),
                Outcome::Cancelled => "cancelled",
            };
            self.outcomes.get_or_create(&KindLabel { kind: kind.into() }).inc_by(entry.count);
            if entry.attempts > 0 {
                self.queued.observe(entry.leased.since_us(entry.submitted) as f64 / 1e6);
                self.run.observe(entry.run_us as f64 / 1e6);
            }
        }
    }

    /// The text that Prometheus reads, with `more` of it at the end.
    pub fn text(&self, more: &str) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode_registry(&mut text, &self.registry);
        text.push_str(more);
        let _ = encode_eof(&mut text);
        text
    }
}
