//! Which worker gets a container: filter, score, take; ties by id.

use capstan_common::{id::WorkerId, resource::Amount, worker::WorkerState};
use std::cmp::Reverse;

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
    /// Whether what becomes free there is kept for somebody else.
    pub reserved: bool,
    /// Whether it is passed over while a steady worker has room.
    pub flaps: bool,
}

/// Why a container cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing that any worker has could ever hold it.
    Impossible(String),
    /// No worker takes containers now.
    NoWorker,
    /// There is room for it on this worker once others leave.
    Full(WorkerId),
}

impl Obstacle {
    /// What an operator reads.
    pub fn sentence(&self, amount: Amount) -> String {
        match self {
            Self::Impossible(why) => why.clone(),
            Self::NoWorker => "no worker is ready".into(),
            Self::Full(_) => format!(
                "every worker is full: none has {} free; it starts when others end, or add a worker",
                asked(amount)
            ),
        }
    }
}

fn asked(amount: Amount) -> String {
    format!("{} cores and {} MiB", amount.cpu_milli as f64 / 1000.0, amount.memory_mib)
}

/// The best of some workers so far: the one with the most free CPU, ties by name.
type Best<'a> = Option<(Reverse<u64>, &'a WorkerId)>;

/// The ready worker with the most free CPU that fits, or why none does. Those that flap count only where no steady one has room.
pub fn place<'a>(
    amount: Amount,
    gpu: &[String],
    workers: impl Iterator<Item = Candidate<'a>>,
) -> Result<WorkerId, Obstacle> {
    if !gpu.is_empty() {
        return Err(Obstacle::Impossible(format!("no worker has a GPU of {gpu:?}")));
    }
    let mut ready = 0;
    // Steady ones, and those that flap: which fits, and which is large enough.
    let mut found: [(Best<'a>, Best<'a>); 2] = Default::default();
    for worker in workers.filter(|w| w.state == WorkerState::Ready) {
        ready += 1;
        let rank = (Reverse(worker.free.cpu_milli), worker.id);
        let better = |of: &Best| of.as_ref().is_none_or(|best| rank < *best);
        let (best, large) = &mut found[usize::from(worker.flaps)];
        if worker.capacity.covers(amount) && better(large) {
            *large = Some(rank);
        }
        if worker.free.covers(amount) && !worker.reserved && better(best) {
            *best = Some(rank);
        }
    }
    let [steady, flapping] = found;
    match (steady.0.or(flapping.0), steady.1.or(flapping.1)) {
        (Some((_, id)), _) => Ok(id.clone()),
        (None, Some((_, id))) => Err(Obstacle::Full(id.clone())),
        (None, None) if ready == 0 => Err(Obstacle::NoWorker),
        (None, None) => Err(Obstacle::Impossible(format!(
            "no worker is large enough for {}; ask for less, or add a larger worker",
            asked(amount)
        ))),
    }
}
