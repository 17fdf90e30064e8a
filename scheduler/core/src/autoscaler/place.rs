//! Which worker gets a container: filter, score, take; ties by id.

use capstan_common::{id::WorkerId, resource::Amount, worker::WorkerState};
use std::{cmp::Reverse, sync::Arc};

/// A worker as placement sees it.
pub struct Candidate<'a> {
    /// Its name.
    pub id: &'a WorkerId,
    /// All that it has.
    pub capacity: Amount,
    /// What of it is free.
    pub free: Amount,
    /// Whether it takes containers.
    pub state: WorkerState,
}

/// The ready worker with the most free CPU that fits, or why none does.
pub fn place<'a>(
    amount: Amount,
    gpu: &[String],
    workers: impl Iterator<Item = Candidate<'a>>,
) -> Result<WorkerId, Arc<str>> {
    if !gpu.is_empty() {
        return Err(format!("no worker has a GPU of {gpu:?}").into());
    }
    let (mut ready, mut large_enough) = (0, 0);
    let mut best: Option<(Reverse<u64>, &WorkerId)> = None;
    for worker in workers.filter(|w| w.state == WorkerState::Ready) {
        ready += 1;
        large_enough += u32::from(worker.capacity.covers(amount));
        if !worker.free.covers(amount) {
            continue;
        }
        let rank = (Reverse(worker.free.cpu_milli), worker.id);
        if best.as_ref().is_none_or(|best| rank < *best) {
            best = Some(rank);
        }
    }
    best.map(|(_, id)| id.clone()).ok_or_else(|| {
        let asked = format!("{} cores and {} MiB", amount.cpu_milli as f64 / 1000.0, amount.memory_mib);
        match (ready, large_enough) {
            (0, _) => "no worker is ready".into(),
            (_, 0) => format!("no worker is large enough for {asked}; ask for less, or add a larger worker").into(),
            _ => format!("every worker is full: none has {asked} free; it starts when others end, or add a worker")
                .into(),
        }
    })
}
