//! Workers by what is free of them, so that among ten thousand the best is found without looking at all.

use super::{
    Autoscaler, Worker,
    elsewhere::Left,
    place::{Asked, Placed, choice},
};
use crate::decision::Choice;
use capstan_common::{id::WorkerId, resource::Amount, worker::WorkerState};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Workers that are looked at before all are: the emptiest may lack memory.
const LOOKS: usize = 32;

/// Ready, steady workers. Those without GPUs: the one with the most free CPU first. Those with GPUs by model: the one with the
/// fewest free, then the most free CPU. Ties by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    plain: BTreeSet<(Reverse<u64>, WorkerId)>,
    gpus: BTreeMap<Arc<str>, BTreeSet<WithGpus>>,
}

/// Free GPUs, free CPU, and the worker.
type WithGpus = (u64, Reverse<u64>, WorkerId);

/// A worker's place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rank {
    Plain(Reverse<u64>),
    Gpus(Arc<str>, u64, Reverse<u64>),
}

impl Worker {
    /// What is neither given out here, which is `held`, nor taken by others.
    pub fn free(&self, held: Amount) -> Amount {
        self.capacity.minus(held).minus(self.others)
    }

    fn rank(&self, held: Amount) -> Option<Rank> {
        let (counts, free) = (self.state == WorkerState::Ready && !self.flaps, self.free(held));
        let cpu = Reverse(free.cpu_milli);
        counts.then(|| match self.capacity.gpus {
            0 => Rank::Plain(cpu),
            _ => Rank::Gpus(self.gpu.clone(), free.gpus, cpu),
        })
    }
}

impl Autoscaler {
    /// Changes a worker, and its rank with it. Whether there is such a worker.
    pub(super) fn change(&mut self, id: &WorkerId, change: impl FnOnce(&mut Worker)) -> bool {
        let held = self.held.on(id);
        let Some(worker) = self.workers.get_mut(id) else { return false };
        let before = worker.rank(held);
        change(worker);
        let after = worker.rank(held);
        if before != after {
            self.ranking.turn(id, before, after);
        }
        true
    }

    /// Changes what is held on a worker, and the worker's rank with it.
    pub(super) fn with_rank<T>(&mut self, id: &WorkerId, change: impl FnOnce(&mut Self) -> T) -> T {
        let rank = |core: &Self| core.workers.get(id).and_then(|worker| worker.rank(core.held.on(id)));
        let before = rank(self);
        let answer = change(self);
        let after = rank(self);
        if before != after {
            self.ranking.turn(id, before, after);
        }
        answer
    }

    /// A worker comes or comes again.
    pub(super) fn add(&mut self, id: WorkerId, worker: Worker) {
        let held = self.held.on(&id);
        let after = worker.rank(held);
        let before = self.workers.insert(id.clone(), worker).and_then(|worker| worker.rank(held));
        self.ranking.turn(&id, before, after);
    }

    /// A worker is no more.
    pub(super) fn remove(&mut self, id: &WorkerId) {
        let held = self.held.on(id);
        let before = self.workers.remove(id).and_then(|worker| worker.rank(held));
        self.ranking.turn(id, before, None);
    }

    /// One of the best workers with room beyond what is left to others, where the first few of them have any; nothing does not
    /// mean that there is none.
    pub(super) fn quickly(&self, asked: Asked, reserved: Option<&WorkerId>, left: &Left) -> Option<Placed> {
        let fits = |id: &&WorkerId, amount: Amount| {
            let worker = self.workers.get(*id).filter(|worker| worker.ground.takes(asked.needs));
            let free = worker.map(|worker| worker.free(self.held.on(id)).minus(left.on(id)));
            Some(*id) != reserved && free.is_some_and(|free| free.covers(amount))
        };
        let placed = |id: &WorkerId, amount, gpu, chosen| Placed { worker: id.clone(), amount, gpu, chosen };
        if asked.gpus.is_empty() {
            let plain = self.ranking.plain.iter().map(|(_, id)| id);
            if let Some(found) = plain.take(LOOKS).find(|id| fits(id, asked.amount)) {
                return Some(placed(found, asked.amount, None, Choice::MostFreeCpu));
            }
            // Only if that were all: the next one without GPUs may have room.
            let all = self.ranking.plain.len() <= LOOKS;
            let mut beside = self.ranking.gpus.values().flat_map(|of| of.iter().map(|(_, _, id)| id).take(LOOKS));
            let found = beside.find(|id| all && fits(id, asked.amount))?;
            return Some(placed(found, asked.amount, None, Choice::BesideGpus));
        }
        for (n, request) in asked.gpus.iter().enumerate() {
            let amount = asked.by(request);
            // The card that is named comes before a better one.
            let models = || self.ranking.gpus.iter().filter(|(model, _)| request.takes(model));
            let named = models().filter(|(model, _)| request.is_named(model));
            let least = (amount.gpus, Reverse(u64::MAX), WorkerId("".into()));
            for (model, of) in named.chain(models().filter(|(model, _)| !request.is_named(model))) {
                let mut ids = of.range(least.clone()..).map(|(_, _, id)| id);
                if let Some(found) = ids.by_ref().take(LOOKS).find(|id| fits(id, amount)) {
                    let chosen = choice(true, !request.is_named(model), false);
                    let chosen = if n > 0 { Choice::LaterPreference } else { chosen };
                    return Some(placed(found, amount, Some(request.clone()), chosen));
                }
                // One that was not looked at comes before whatever is next.
                if ids.next().is_some() {
                    return None;
                }
            }
        }
        None
    }

    /// Whether the ranking is true.
    pub(super) fn check_ranking(&self) -> Result<(), String> {
        let mut ranking = Ranking::default();
        self.workers.iter().for_each(|(id, worker)| ranking.turn(id, None, worker.rank(self.held.on(id))));
        if ranking == self.ranking { Ok(()) } else { Err("workers are ranked wrongly".into()) }
    }
}

impl Ranking {
    fn turn(&mut self, id: &WorkerId, before: Option<Rank>, after: Option<Rank>) {
        match before {
            Some(Rank::Plain(cpu)) => {
                self.plain.remove(&(cpu, id.clone()));
            }
            Some(Rank::Gpus(model, free, cpu)) => {
                if let Some(of) = self.gpus.get_mut(&model) {
                    of.remove(&(free, cpu, id.clone()));
                    if of.is_empty() {
                        self.gpus.remove(&model);
                    }
                }
            }
            None => {}
        }
        match after {
            Some(Rank::Plain(cpu)) => {
                self.plain.insert((cpu, id.clone()));
            }
            Some(Rank::Gpus(model, free, cpu)) => {
                self.gpus.entry(model).or_default().insert((free, cpu, id.clone()));
            }
            None => {}
        }
    }
}
