//! Values for the golden files, with everything in them that their types can say.
#![allow(missing_docs)]

use capstan_common::{
    call::{CallKind, CallState, Counts},
    id::{CallId, ContainerId, FunctionKey, Revision},
    input::{Blob, Body, Failure, FailureKind, Format, Outcome, Payload},
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler::{Policy, Quota},
    decision::{Decision, Facts},
    record::{CallRecord, Deployment, Entry, PastAttempt, ScheduleState, Segment, Tries, UsedKey},
};
use std::sync::Arc;

const NOW: Time = Time(1_764_000_000_000_000);
pub const CALL: CallId = CallId(0x0199_0000_0000_7000_8000_0000_0000_0001);

pub fn decisions() -> Vec<Vec<Decision>> {
    let facts = Facts { pending: 7, running: 3, slots: 2, min: 1, max: 9, buffer: 1, starting: 4, live: 5 };
    vec![vec![Decision { at: NOW, from: 0, to: 5, reason: "inputs_and_buffer".into(), facts }]]
}

pub fn schedules() -> Vec<ScheduleState> {
    vec![
        ScheduleState { paused: true, last: Some(NOW), waiting: [NOW, NOW.plus_ms(1)].into() },
        ScheduleState::default(),
    ]
}

pub fn tries() -> Box<Tries> {
    let lost =
        PastAttempt { container: ContainerId(4), leased: NOW, ended: NOW.plus_ms(9), lost: true, why: "gone".into() };
    Box::new(Tries { failures: 2, losses: 1, past: vec![lost] })
}

pub fn used_keys() -> Vec<UsedKey> {
    vec![UsedKey { digest: [7; 32], call: CALL, at: NOW }]
}

pub fn policies() -> Vec<Policy> {
    let quota = Quota { containers: Some(10), cpu_milli: Some(4_000), memory_mib: Some(1 << 20), gpus: Some(8) };
    vec![Policy { weight: 3, quota }, Policy::default()]
}

pub fn payloads() -> Vec<Payload> {
    vec![
        Payload::json(&b"{\"a\":1}"[..]),
        Payload { format: Format::Json, body: Body::Blob(Blob { name: "call/in-0".into(), len: 9_000, crc32c: 7 }) },
    ]
}

/// In every format.
pub fn formats() -> Vec<Payload> {
    let all = payloads().into_iter().flat_map(|payload| {
        [Format::Json, Format::Pickle, Format::Cbor].map(|format| Payload { format, ..payload.clone() })
    });
    all.collect()
}

pub fn entries(payloads: Vec<Payload>) -> Vec<Entry> {
    let entry = |index, outcome| Entry {
        index,
        count: 1,
        attempts: 2,
        container: ContainerId(4),
        submitted: NOW,
        leased: NOW.plus_ms(1),
        run_us: 77,
        finished: NOW.plus_ms(2),
        outcome,
        tries: (index == 1).then(tries),
    };
    let kinds = [
        FailureKind::Function,
        FailureKind::Timeout,
        FailureKind::Startup,
        FailureKind::Crashed,
        FailureKind::BadOutput,
        FailureKind::Lost,
    ];
    let failures =
        kinds.map(|kind| Outcome::Failed(Failure { traceback: "line 1".into(), ..Failure::new(kind, "E", "e") }));
    let outcomes = payloads.into_iter().map(Outcome::Succeeded).chain(failures).chain([Outcome::Cancelled]);
    outcomes.zip(0..).map(|(outcome, index)| entry(index, outcome)).collect()
}

pub fn call_records() -> Vec<CallRecord> {
    let kinds = [CallKind::Invoke, CallKind::Spawn, CallKind::Map, CallKind::SpawnMap];
    let states =
        [CallState::Pending, CallState::Running, CallState::Succeeded, CallState::Failed, CallState::Cancelled];
    let record = |(n, state)| CallRecord {
        id: CALL,
        kind: kinds[n % 4],
        created: NOW,
        segments: vec![Segment { number: 1, first: 2, count: 3 }; n],
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        counts: Counts { total: 21, pending: 1, running: 2, succeeded: 5, failed: 6, cancelled: 7 },
        state,
        finished: (n > 1).then_some(NOW),
        outcome_records: 2,
    };
    states.into_iter().enumerate().map(|(n, state)| record((n, state))).collect()
}

pub fn deployment() -> Deployment {
    let spec = r#"{
        "runtime": {"process": {"command": ["true", "-x"], "working_dir": "/tmp", "env": {"A": "b"}}},
        "protocol": "exec", "resources": {"cpu": 0.5, "cpu_limit": 2, "memory_mib": 64, "gpu": ["H100", "A100:2"]},
        "autoscaler": {"min_containers": 1, "max_containers": 5, "buffer_containers": 2, "scaledown_window": 9, "scaleup_policy": "cost"},
        "concurrency": {"max_inputs": 4, "target_inputs": 3}, "weight": 2, "batching": {"max_batch_size": 8, "wait_ms": 50},
        "retries": {"max_retries": 3, "initial_delay_ms": 5, "backoff_coefficient": 1.5, "max_delay_ms": 10},
        "timeout_s": 1.5, "startup_timeout_s": 7, "schedule": {"cron": "0 6 * * *", "timezone": "Europe/Berlin", "input": {"a": 1}},
        "profiles": [{"name": "night", "start": "0 22 * * *", "end": "0 6 * * *", "autoscaler": {"min_containers": 0}}],
        "model_id": "m", "activity": {"source": "prometheus"}, "parameters": {"size": {"type": "integer", "default": 7}},
        "volumes": {"/data": "v"}, "labels": {"team": "a"}, "secrets": ["s"], "confined": true, "token": {"role": "read"}}"#;
    let spec = serde_json::from_str(spec).expect("a spec");
    Deployment { revision: Revision(3), spec: Arc::new(spec), at: NOW }
}

pub fn function() -> FunctionKey {
    FunctionKey::new("default", "f")
}
