//! What a world is made of: functions with specs of all kinds, and clients with calls of all kinds, drawn from the seed.

use super::{
    clients::Client,
    engine::{Action, BUSY_MS, Subject, World},
    store::Durable,
    workers::SLOW_START_S,
};
use capstan_common::{call::CallKind, function::FunctionSpec, id::FunctionKey, time::Time};
use capstan_scheduler_core::event::FailFast;
use rand::Rng;
use serde_json::json;
use std::{collections::BTreeSet, sync::Arc};

impl World {
    pub(super) fn populate(&mut self) {
        for f in 0..self.plan.functions {
            self.add_function(f);
        }
        for s in 0..self.plan.schedulers {
            self.plan(self.now, Action::Start { scheduler: s });
        }
        let mut left = self.plan.inputs;
        while left > 0 {
            let inputs = self.add_client(left);
            left -= inputs.min(left);
        }
        self.add_visitors();
        for _ in 0..self.plan.faults {
            let at = self.after(0, BUSY_MS * 1000);
            self.plan(at, Action::Fault);
        }
    }

    fn spec(&mut self) -> FunctionSpec {
        let exec = self.chance(40);
        let batch = !exec && self.chance(40);
        let concurrency = if batch { 1 } else { self.rng.random_range(1..4) };
        let min = if self.chance(20) { 1 } else { 0 };
        let mut spec = json!({
            "runtime": {"process": {"command": ["true"]}},
            "protocol": if exec { "exec" } else { "http" },
            "resources": {"cpu": self.rng.random_range(1..5) as f64 * 0.25},
            "autoscaler": {"min_containers": min, "max_containers": self.rng.random_range(1..7), "buffer_containers": self.rng.random_range(0..2), "scaledown_window": self.rng.random_range(1..4)},
            "concurrency": {"max_inputs": concurrency},
            "retries": {"max_retries": self.rng.random_range(0..4), "initial_delay_ms": 10, "max_delay_ms": 1000},
        });
        if batch {
            spec["batching"] =
                json!({"max_batch_size": self.rng.random_range(2..9), "wait_ms": self.rng.random_range(0..200)});
        }
        if self.chance(20) {
            spec["startup_timeout_s"] = json!(SLOW_START_S);
        }
        if self.chance(15) {
            let wish = if self.chance(50) { json!("H100") } else { json!(["A100", "H100:2"]) };
            spec["resources"]["gpu"] = wish;
        }
        if concurrency == 1 && self.chance(15) {
            spec["single_use_containers"] = json!(true);
        }
        serde_json::from_value(spec).expect("a spec")
    }

    fn add_function(&mut self, f: usize) {
        let key = FunctionKey::new(["default", "other"][f % 2], &format!("f{f:05}"));
        let spec = Arc::new(self.spec());
        let shard = key.shard(self.keys.shards);
        self.functions.push(Subject { key, shard, spec, durable: Durable::default() });
    }

    fn add_client(&mut self, left: u64) -> u64 {
        let kind = match self.rng.random_range(0..10) {
            0..=1 => CallKind::Invoke,
            2..=3 => CallKind::Spawn,
            4..=6 => CallKind::Map,
            _ => CallKind::SpawnMap,
        };
        let most = (left / 4).clamp(2, 20_000);
        let inputs =
            if matches!(kind, CallKind::Invoke | CallKind::Spawn) { 1 } else { self.rng.random_range(1..=most) };
        let client = Client {
            function: self.rng.random_range(0..self.plan.functions),
            kind,
            inputs,
            keyed: matches!(kind, CallKind::Spawn | CallKind::SpawnMap),
            cancels: matches!(kind, CallKind::SpawnMap | CallKind::Spawn) && self.chance(15),
            leaves: kind.is_interactive() && self.chance(15),
            fail_fast: match self.rng.random_range(0..4) {
                0 => FailFast::InOrder,
                1 => FailFast::AtOnce,
                _ => FailFast::No,
            },
            asked: BTreeSet::new(),
            at: None,
            accepted: None,
            sent: 0,
            arrives: Time(0),
            closed: false,
            done: false,
        };
        let number = self.clients.len();
        let at = self.after(0, BUSY_MS * 1000);
        self.plan(at, Action::Open { client: number });
        if client.cancels {
            let at = Time(at.0 + self.rng.random_range(0..3_000_000));
            self.plan(at, Action::Cancel { client: number });
        }
        if client.leaves {
            let at = Time(at.0 + self.rng.random_range(0..2_000_000));
            self.plan(at, Action::Leave { client: number });
        }
        self.clients.push(client);
        inputs
    }
}
