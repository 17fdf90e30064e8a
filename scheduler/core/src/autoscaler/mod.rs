//! What every pool wants against what the workers have: fair share, quotas, placement, and who gives way.

mod allocate;
mod elsewhere;
mod event;
mod held;
mod invariant;
mod nodes;
mod place;
mod ranking;
mod share;
mod yielding;

pub use elsewhere::{Lack, Summary, Told};
pub use event::{Effect, Event};
pub use nodes::Wanted;
pub use share::{Policy, Quota};

use crate::{decision::Waiting, effect::Demand};
use capstan_common::{
    id::{ContainerId, Epoch, FunctionKey, Minter, WorkerId},
    isolation::Ground,
    resource::Amount,
    time::Time,
    worker::WorkerState,
};
use elsewhere::Elsewhere;
use held::{Container, Held, Sum};
use ranking::Ranking;
use share::{Class, Hungry, share};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

#[derive(Debug, Clone)]
struct Worker {
    capacity: Amount,
    /// The model of its GPUs.
    gpu: Arc<str>,
    /// What is taken there by others, as it last told.
    others: Amount,
    state: WorkerState,
    /// It is passed over while a steady one has room.
    flaps: bool,
    /// What its isolation is good for.
    ground: Ground,
}

#[derive(Debug, Clone)]
struct Want {
    demand: Demand,
    grants: u64,
    /// What its shell was last told, so that it is told once.
    unplaced: Option<Arc<Waiting>>,
    /// So many it was asked to give up, and has not answered.
    asked: u32,
    /// Workers where it had nothing to give when it was last asked.
    declined: BTreeSet<WorkerId>,
}

impl Want {
    fn new(demand: Demand) -> Self {
        Self { grants: demand.grants_seen, demand, unplaced: None, asked: 0, declined: BTreeSet::new() }
    }

    /// What it lacks beyond the grants that are on their way.
    fn outstanding(&self) -> u32 {
        let under_way = self.grants.saturating_sub(self.demand.grants_seen) as u32;
        self.demand.missing.saturating_sub(under_way)
    }

    /// What one of its containers takes, or will, where these are all.
    fn each(&self, held: Sum) -> Amount {
        if held.count == 0 { self.demand.amount } else { held.each() }
    }

    /// Of its containers, those above the minimum that do not leave already.
    fn above(&self, held: Sum) -> u32 {
        held.count.saturating_sub(self.demand.leaving).saturating_sub(self.demand.min)
    }

    fn class(&self) -> Class {
        let demand = &self.demand;
        (demand.amount.cpu_milli, demand.amount.memory_mib, demand.gpus.clone(), demand.needs)
    }
}

/// The amount of one of many; nothing of one that is not among them.
fn of<K: Ord + Borrow<Q>, Q: Ord + ?Sized>(amounts: &BTreeMap<K, Amount>, key: &Q) -> Amount {
    amounts.get(key).copied().unwrap_or_default()
}

/// Adds to the amount of one of many.
fn add<K: Ord + Clone>(amounts: &mut BTreeMap<K, Amount>, key: &K, amount: Amount) {
    let sum = amounts.entry(key.clone()).or_default();
    *sum = sum.plus(amount);
}

/// The autoscaler of one scheduler.
#[derive(Debug, Clone)]
pub struct Autoscaler {
    minter: Minter,
    workers: BTreeMap<WorkerId, Worker>,
    ranking: Ranking,
    /// All containers of this scheduler, and their sums.
    held: Held,
    /// What all ready workers have together.
    total: Amount,
    wants: BTreeMap<FunctionKey, Want>,
    /// Weights and quotas that are not the usual ones.
    policies: BTreeMap<Arc<str>, Policy>,
    /// Functions with something outstanding.
    hungry: Hungry,
    /// Functions with idle containers to spare, or with some that leave.
    giving: BTreeSet<FunctionKey>,
    /// What the other schedulers of the cluster told.
    elsewhere: Elsewhere,
    /// What namespaces lack that nobody here can give, and since when.
    lacking: BTreeMap<Arc<str>, (Lack, Time)>,
    /// Since when namespaces lacked something before this round.
    lacked: BTreeMap<Arc<str>, Time>,
    #[cfg(feature = "mutants")]
    mutant: u8,
}

impl Autoscaler {
    /// Plants a fault.
    #[cfg(feature = "mutants")]
    pub fn plant(&mut self, mutant: u8) {
        self.mutant = mutant;
    }

    /// Knows nothing yet.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            minter: Minter::new(epoch),
            workers: BTreeMap::new(),
            ranking: Ranking::default(),
            held: Held::default(),
            total: Amount::default(),
            wants: BTreeMap::new(),
            policies: BTreeMap::new(),
            hungry: Hungry::default(),
            giving: BTreeSet::new(),
            elsewhere: Elsewhere::default(),
            lacking: BTreeMap::new(),
            lacked: BTreeMap::new(),
            #[cfg(feature = "mutants")]
            mutant: 0,
        }
    }

    /// Takes an event, and answers demand as far as there is room.
    pub fn step(&mut self, event: Event, out: &mut Vec<Effect>) {
        let matters = self.apply(event, out);
        if self.hungry.is_empty() {
            self.lacking.clear();
        } else if matters {
            self.allocate(out);
        }
    }

    /// Whether what was told can change who gets what.
    fn apply(&mut self, event: Event, out: &mut Vec<Effect>) -> bool {
        match event {
            Event::Joined { worker, capacity, gpu, ground, state, flaps } => {
                let others = self.workers.get(&worker).map_or(Amount::default(), |w| w.others);
                self.add(worker, Worker { capacity, gpu, others, state, flaps, ground });
                self.count_total();
            }
            Event::Turned { worker, state } => {
                self.change(&worker, |worker| worker.state = state);
                self.count_total();
            }
            Event::Flaps { worker, flaps } => return self.change(&worker, |worker| worker.flaps = flaps),
            Event::Lost { worker } => {
                self.remove(&worker);
                self.count_total();
            }
            Event::Wanted(demand) => return self.wanted(demand),
            Event::Forgotten(function) => self.forget(&function),
            Event::Left(function) => {
                self.forget(&function);
                let of = self.held.iter().filter(|(_, container)| container.function == function);
                let ids: Vec<ContainerId> = of.map(|(id, _)| id).collect();
                ids.into_iter().for_each(|id| self.released(id));
            }
            Event::Others { worker, amount } => {
                let news = self.workers.get(&worker).is_some_and(|worker| worker.others != amount);
                return news && self.change(&worker, |worker| worker.others = amount);
            }
            Event::Elsewhere { me, now, told } => return self.elsewhere(me, now, told, out),
            Event::Governed { namespace, policy } => {
                self.policies.insert(namespace.clone(), policy);
                // Whoever was told of the old bounds is told anew.
                self.wants.values_mut().for_each(|want| want.unplaced = None);
                self.make_room_in_quota(&namespace, None, out);
            }
            Event::Held { container, function, worker, amount } => self.take(container, function, worker, amount),
            Event::Released(container) => self.released(container),
        }
        true
    }

    /// Shares are parts of what there is: when that changes, all of them do.
    fn count_total(&mut self) {
        let ready = self.workers.values().filter(|w| w.state == WorkerState::Ready);
        let total = ready.fold(Amount::default(), |sum, w| sum.plus(w.capacity));
        if total == self.total {
            return;
        }
        self.total = total;
        let keys: Vec<_> = self.wants.keys().filter(|key| self.hungry.has(key)).cloned().collect();
        keys.iter().for_each(|key| self.rank(key));
    }

    /// Whether the function lacks something, or has answered a question: then others may get what they lack.
    fn wanted(&mut self, demand: Demand) -> bool {
        let key = demand.function.clone();
        let lacked = self.hungry.has(&key);
        let mut matters = false;
        match self.wants.get_mut(&key) {
            Some(want) => {
                let changed = (want.demand.spare, want.demand.leaving) != (demand.spare, demand.leaving);
                matters = std::mem::take(&mut want.asked) > 0 || changed;
                if changed {
                    want.declined.clear();
                }
                if demand.missing == 0 {
                    want.unplaced = None;
                }
                want.demand = demand;
            }
            None => drop(self.wants.insert(key.clone(), Want::new(demand))),
        }
        if self.wants.get(&key).is_some_and(|want| want.demand.spare > 0 || want.demand.leaving > 0) {
            self.giving.insert(key.clone());
        } else {
            self.giving.remove(&key);
        }
        self.rank(&key);
        matters || lacked || self.hungry.has(&key)
    }

    fn forget(&mut self, function: &FunctionKey) {
        self.wants.remove(function);
        self.hungry.remove(function);
        self.giving.remove(function);
    }

    /// Puts a function where its share belongs among the hungry, or takes it out.
    fn rank(&mut self, key: &FunctionKey) {
        let Some(want) = self.wants.get(key).filter(|want| want.outstanding() > 0) else {
            self.hungry.remove(key);
            return;
        };
        let share = share(self.held.of(key).used, self.total, want.demand.weight);
        self.hungry.set(key, want.class(), share);
    }

    fn take(&mut self, id: ContainerId, function: FunctionKey, worker: WorkerId, amount: Amount) {
        let key = function.clone();
        let container = Container { function, worker: worker.clone(), amount };
        self.with_rank(&worker, |core| core.held.add(id, container));
        self.rank(&key);
    }

    fn released(&mut self, id: ContainerId) {
        if mutated!(self.mutant, CAPACITY_NOT_RETURNED) {
            return;
        }
        let Some(worker) = self.held.get(id).map(|container| container.worker.clone()) else { return };
        let Some(container) = self.with_rank(&worker, |core| core.held.remove(id)) else { return };
        if let Some(want) = self.wants.get_mut(&container.function) {
            want.declined.clear();
        }
        self.rank(&container.function);
    }

    /// A worker's capacity, what of it is given out, and its state.
    pub fn worker(&self, id: &WorkerId) -> Option<(Amount, Amount, WorkerState)> {
        self.workers.get(id).map(|w| (w.capacity, self.held.on(id).plus(w.others), w.state))
    }

    /// Namespaces with their policies, their containers everywhere, and what those take.
    pub fn spaces(&self) -> impl Iterator<Item = (&Arc<str>, Policy, u32, Amount)> {
        let held = self.held.namespaces().map(|(name, _)| name);
        let names: BTreeSet<&Arc<str>> = self.policies.keys().chain(held).chain(self.elsewhere.names()).collect();
        names.into_iter().map(|name| {
            let policy = self.policies.get(name).cloned().unwrap_or_default();
            let (held, used) = self.everywhere(name);
            (name, policy, held, used)
        })
    }

    /// Containers that hold a place, and their functions.
    pub fn holders(&self) -> impl Iterator<Item = (ContainerId, &FunctionKey)> {
        self.held.iter().map(|(id, container)| (id, &container.function))
    }
}

#[cfg(test)]
mod tests;
