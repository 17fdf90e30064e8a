//! Workers by what is free of them, so that among ten thousand the best is found without looking at all.

use super::{Autoscaler, Worker, elsewhere::Left};
use capstan_common::{id::WorkerId, resource::Amount, worker::WorkerState};
use std::{cmp::Reverse, collections::BTreeSet};

/// Workers that are looked at before all are: the emptiest may lack memory.
const LOOKS: usize = 32;

/// Whether it has GPUs, which are kept for who asks for them, and its free CPU.
type Rank = (bool, Reverse<u64>);

/// Ready, steady workers: those without GPUs first, then the one with the most free CPU; ties by name.
#[derive(Debug, Clone, Default)]
pub struct Ranking(BTreeSet<(Rank, WorkerId)>);

impl Worker {
    /// What is neither given out here nor taken by others.
    pub fn free(&self) -> Amount {
        self.capacity.minus(self.used).minus(self.others)
    }

    fn rank(&self) -> Option<Rank> {
        let counts = self.state == WorkerState::Ready && !self.flaps;
        counts.then(|| (self.capacity.gpus > 0, Reverse(self.free().cpu_milli)))
    }
}

impl Autoscaler {
    /// Changes a worker, and its rank with it. Whether there is such a worker.
    pub(super) fn change(&mut self, id: &WorkerId, change: impl FnOnce(&mut Worker)) -> bool {
        let Some(worker) = self.workers.get_mut(id) else { return false };
        let before = worker.rank();
        change(worker);
        let after = worker.rank();
        if before != after {
            self.ranking.turn(id, before, after);
        }
        true
    }

    /// A worker comes or comes again.
    pub(super) fn add(&mut self, id: WorkerId, worker: Worker) {
        let after = worker.rank();
        let before = self.workers.insert(id.clone(), worker).and_then(|worker| worker.rank());
        self.ranking.turn(&id, before, after);
    }

    /// A worker is no more.
    pub(super) fn remove(&mut self, id: &WorkerId) {
        let before = self.workers.remove(id).and_then(|worker| worker.rank());
        self.ranking.turn(id, before, None);
    }

    /// One of the emptiest workers with room, where the first few have any beyond what is left to others.
    pub(super) fn emptiest(&self, amount: Amount, reserved: Option<&WorkerId>, left: &Left) -> Option<WorkerId> {
        let free = |id: &WorkerId| self.workers.get(id).map(|worker| worker.free().minus(left.on(id)));
        let fits = |id: &WorkerId| free(id).is_some_and(|free| free.covers(amount));
        let ids = self.ranking.0.iter().map(|(_, id)| id).take(LOOKS);
        ids.filter(|id| Some(*id) != reserved).find(|id| fits(id)).cloned()
    }

    /// Whether the ranking is true.
    pub(super) fn check_ranking(&self) -> Result<(), String> {
        let ranks = self.workers.iter().filter_map(|(id, worker)| Some((worker.rank()?, id.clone())));
        if ranks.collect::<BTreeSet<_>>() == self.ranking.0 { Ok(()) } else { Err("workers are ranked wrongly".into()) }
    }
}

impl Ranking {
    fn turn(&mut self, id: &WorkerId, before: Option<Rank>, after: Option<Rank>) {
        if let Some(before) = before {
            self.0.remove(&(before, id.clone()));
        }
        if let Some(after) = after {
            self.0.insert((after, id.clone()));
        }
    }
}
