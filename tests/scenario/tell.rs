//! What is written below a script's lines.

use capstan_common::{id::WorkerId, input::Outcome, resource::Amount};
use capstan_scheduler_core::{
    decision::{Decision, Waiting},
    record::Entry,
};

/// A scale decision with the numbers behind it; what is nothing is left out.
pub fn decision(decision: &Decision) -> String {
    let facts = &decision.facts;
    let numbers = [
        ("pending", facts.pending),
        ("running", facts.running),
        ("slots", if facts.slots == 1 { 0 } else { facts.slots }),
        ("min", facts.min.into()),
        ("max", facts.max.into()),
        ("buffer", facts.buffer.into()),
        ("starting", facts.starting.into()),
        ("live", facts.live.into()),
    ];
    let named = numbers.iter().filter(|(_, number)| *number > 0).map(|(name, number)| format!("{name} {number}"));
    let named: Vec<_> = named.collect();
    format!("wants {} for {} ({}): {}", decision.to, decision.from, decision.reason, named.join(", "))
}

/// Why something waits.
pub fn waiting(why: &Waiting) -> String {
    format!("{}: {}", why.code, why.detail)
}

/// An amount of a machine.
pub fn amount(amount: Amount) -> String {
    let mut text = format!("{} cores, {} MiB", amount.cpu_milli as f64 / 1000.0, amount.memory_mib);
    if amount.gpus > 0 {
        text += &format!(", {} GPUs", amount.gpus);
    }
    text
}

/// What a pool is asked to give up.
pub fn give_way(worker: Option<&WorkerId>, count: u32, busy: bool) -> String {
    let place = worker.map_or_else(String::new, |worker| format!(" on {worker}"));
    let kind = if busy { "busy or idle" } else { "idle" };
    format!("must give up {count}{place}, {kind}")
}

/// How inputs ended, if not well.
pub fn entry(entry: &Entry) -> Option<String> {
    let inputs = match entry.count {
        1 => format!("input {}", entry.index),
        count => format!("inputs {} to {}", entry.index, entry.index + count - 1),
    };
    match &entry.outcome {
        Outcome::Succeeded(_) => None,
        Outcome::Cancelled => Some(format!("{inputs}: cancelled")),
        Outcome::Failed(failure) => Some(format!(
            "{inputs}: {:?} after {} attempts: {}: {}",
            failure.kind, entry.attempts, failure.error_type, failure.message
        )),
    }
}
