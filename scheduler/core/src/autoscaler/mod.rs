//! What every pool wants against what the workers have: fair share, placement, and who gives way.

mod place;

use crate::effect::Demand;
use capstan_common::{
    id::{ContainerId, Epoch, FunctionKey, Minter, WorkerId},
    resource::Amount,
    worker::WorkerState,
};
use place::{Candidate, place};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What the autoscaler is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker is there, with all that it has.
    Joined {
        /// Which.
        worker: WorkerId,
        /// What it has.
        capacity: Amount,
        /// Whether it takes containers.
        state: WorkerState,
    },
    /// A worker's state changed.
    Turned {
        /// Which.
        worker: WorkerId,
        /// To what.
        state: WorkerState,
    },
    /// A worker is lost. Its containers are released one by one by their functions.
    Lost {
        /// Which.
        worker: WorkerId,
    },
    /// What a pool wants now.
    Wanted(Demand),
    /// A function is gone.
    Forgotten(FunctionKey),
    /// A container was adopted.
    Held {
        /// Which.
        container: ContainerId,
        /// Of which function.
        function: FunctionKey,
        /// Where.
        worker: WorkerId,
        /// What it takes there.
        amount: Amount,
    },
    /// A container's place is free.
    Released(ContainerId),
}

/// What the autoscaler asks of its shell.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// A pool may start a container there.
    Grant {
        /// Whose.
        function: FunctionKey,
        /// The container's id.
        container: ContainerId,
        /// Where.
        worker: WorkerId,
    },
    /// A pool's demand cannot be placed.
    Unplaced {
        /// Whose.
        function: FunctionKey,
        /// Why.
        reason: Arc<str>,
    },
    /// A pool should give up idle containers.
    GiveWay {
        /// Whose.
        function: FunctionKey,
        /// How many.
        count: u32,
    },
}

#[derive(Debug, Clone)]
struct Worker {
    capacity: Amount,
    used: Amount,
    state: WorkerState,
}

#[derive(Debug, Clone)]
struct Want {
    demand: Demand,
    grants: u64,
    held: u32,
    /// What its shell was last told, so that it is told once.
    unplaced: bool,
}

impl Want {
    /// What it lacks beyond the grants that are on their way.
    fn outstanding(&self) -> u32 {
        let under_way = (self.grants - self.demand.grants_seen) as u32;
        self.demand.missing.saturating_sub(under_way)
    }
}

/// The autoscaler of one scheduler.
#[derive(Debug, Clone)]
pub struct Autoscaler {
    minter: Minter,
    workers: BTreeMap<WorkerId, Worker>,
    wants: BTreeMap<FunctionKey, Want>,
    /// Functions with something outstanding.
    hungry: BTreeSet<FunctionKey>,
    containers: BTreeMap<ContainerId, (FunctionKey, WorkerId, Amount)>,
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
            wants: BTreeMap::new(),
            hungry: BTreeSet::new(),
            containers: BTreeMap::new(),
            #[cfg(feature = "mutants")]
            mutant: 0,
        }
    }

    /// Takes an event, and answers demand as far as there is room.
    pub fn step(&mut self, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Joined { worker, capacity, state } => self.joined(worker, capacity, state),
            Event::Turned { worker, state } => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.state = state;
                }
            }
            Event::Lost { worker } => {
                self.workers.remove(&worker);
            }
            Event::Wanted(demand) => self.wanted(demand),
            Event::Forgotten(function) => {
                self.wants.remove(&function);
                self.hungry.remove(&function);
            }
            Event::Held { container, function, worker, amount } => self.take(container, function, worker, amount),
            Event::Released(container) => self.released(container),
        }
        self.allocate(out);
    }

    fn joined(&mut self, id: WorkerId, capacity: Amount, state: WorkerState) {
        let used = self
            .containers
            .values()
            .filter(|(_, worker, _)| *worker == id)
            .fold(Amount::default(), |sum, (_, _, amount)| sum.plus(*amount));
        self.workers.insert(id, Worker { capacity, used, state });
    }

    fn wanted(&mut self, demand: Demand) {
        let key = demand.function.clone();
        match self.wants.get_mut(&key) {
            Some(want) => {
                want.unplaced &= demand.missing > 0;
                want.demand = demand;
            }
            None => {
                let want = Want { grants: demand.grants_seen, demand, held: 0, unplaced: false };
                self.wants.insert(key.clone(), want);
            }
        }
        if self.wants[&key].outstanding() > 0 {
            self.hungry.insert(key);
        } else {
            self.hungry.remove(&key);
        }
    }

    fn take(&mut self, id: ContainerId, function: FunctionKey, worker: WorkerId, amount: Amount) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.used = worker.used.plus(amount);
        }
        if let Some(want) = self.wants.get_mut(&function) {
            want.held += 1;
        }
        self.containers.insert(id, (function, worker, amount));
    }

    fn released(&mut self, id: ContainerId) {
        if mutated!(self.mutant, CAPACITY_NOT_RETURNED) {
            return;
        }
        let Some((function, worker, amount)) = self.containers.remove(&id) else {
            return;
        };
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.used = worker.used.minus(amount);
        }
        if let Some(want) = self.wants.get_mut(&function) {
            want.held = want.held.saturating_sub(1);
        }
    }

    /// Gives one container at a time to whoever holds the fewest, so that a full cluster is shared (DESIGN §4).
    fn allocate(&mut self, out: &mut Vec<Effect>) {
        let mut stuck = BTreeSet::new();
        loop {
            let next =
                self.hungry.iter().filter(|key| !stuck.contains(*key)).min_by_key(|key| self.wants[*key].held).cloned();
            let Some(function) = next else { break };
            let want = &self.wants[&function];
            let (amount, gpu) = (want.demand.amount, want.demand.gpu.clone());
            match place(amount, &gpu, self.candidates()) {
                Ok(worker) => self.grant(function, worker, amount, out),
                Err(reason) => {
                    self.tell_unplaced(&function, reason, out);
                    stuck.insert(function);
                }
            }
        }
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        self.workers.iter().map(|(id, worker)| Candidate {
            id,
            capacity: worker.capacity,
            free: if mutated!(self.mutant, CAPACITY_PROMISED_TWICE) {
                worker.capacity
            } else {
                worker.capacity.minus(worker.used)
            },
            state: worker.state,
        })
    }

    fn grant(&mut self, function: FunctionKey, worker: WorkerId, amount: Amount, out: &mut Vec<Effect>) {
        let container = ContainerId(self.minter.mint());
        self.take(container, function.clone(), worker.clone(), amount);
        if let Some(want) = self.wants.get_mut(&function) {
            want.grants += 1;
            want.unplaced = false;
            if want.outstanding() == 0 {
                self.hungry.remove(&function);
            }
        }
        out.push(Effect::Grant { function, container, worker });
    }

    /// Tells the pool once, and asks pools with idle containers above their minimum to make room.
    fn tell_unplaced(&mut self, function: &FunctionKey, reason: Arc<str>, out: &mut Vec<Effect>) {
        let Some(want) = self.wants.get_mut(function) else { return };
        let mut lacking = want.outstanding();
        if !std::mem::replace(&mut want.unplaced, true) {
            out.push(Effect::Unplaced { function: function.clone(), reason });
        }
        for (other, want) in &mut self.wants {
            if other == function || lacking == 0 || want.demand.spare == 0 {
                continue;
            }
            let count = std::mem::take(&mut want.demand.spare).min(lacking);
            lacking -= count;
            out.push(Effect::GiveWay { function: other.clone(), count });
        }
    }

    /// A worker's capacity, what of it is given out, and its state.
    pub fn worker(&self, id: &WorkerId) -> Option<(Amount, Amount, WorkerState)> {
        self.workers.get(id).map(|w| (w.capacity, w.used, w.state))
    }

    /// Containers that hold a place, and their functions.
    pub fn holders(&self) -> impl Iterator<Item = (ContainerId, &FunctionKey)> {
        self.containers.iter().map(|(id, (function, _, _))| (*id, function))
    }

    /// Checks what must always hold: no worker is promised more than it has.
    pub fn check(&self) -> Result<(), String> {
        for (id, worker) in &self.workers {
            let used = self
                .containers
                .values()
                .filter(|(_, at, _)| at == id)
                .fold(Amount::default(), |sum, (_, _, amount)| sum.plus(*amount));
            if used != worker.used {
                return Err(format!("worker {id}: used {:?}, containers take {used:?}", worker.used));
            }
            // While a worker joins, what is lost and what is adopted are told one after the other; nothing is granted there.
            if worker.state == WorkerState::Ready && !worker.capacity.covers(used) {
                let there = self
                    .containers
                    .iter()
                    .filter(|(_, (_, at, _))| at == id)
                    .map(|(c, (f, _, _))| format!("{c} of {f}"));
                let there: Vec<_> = there.collect();
                return Err(format!("worker {id}: {used:?} promised of {:?}: {there:?}", worker.capacity));
            }
        }
        Ok(())
    }
}
