//! What the containers of this scheduler take: every sum of them has its one place here.

use capstan_common::{
    id::{ContainerId, FunctionKey, WorkerId},
    resource::Amount,
};
use std::{collections::BTreeMap, sync::Arc};

/// Some containers, and what they take together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub count: u32,
    /// What they take.
    pub used: Amount,
}

impl Sum {
    /// What one of them takes: no more than that is freed when one leaves, whatever the function asks for today.
    pub fn each(&self) -> Amount {
        self.used.part(self.count)
    }

    fn add(&mut self, amount: Amount) {
        (self.count, self.used) = (self.count + 1, self.used.plus(amount));
    }

    /// Whether nothing is left.
    fn take(&mut self, amount: Amount) -> bool {
        (self.count, self.used) = (self.count.saturating_sub(1), self.used.minus(amount));
        self.count == 0
    }
}

/// One container: whose, where, and what it takes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Whose.
    pub function: FunctionKey,
    /// Where; the worker may be gone.
    pub worker: WorkerId,
    /// What it takes there.
    pub amount: Amount,
}

/// All containers, and their sums by worker, function and namespace: changed together, by one method that adds and one that removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    containers: BTreeMap<ContainerId, Container>,
    workers: BTreeMap<WorkerId, Sum>,
    functions: BTreeMap<FunctionKey, Sum>,
    namespaces: BTreeMap<Arc<str>, Sum>,
    /// By worker, then by function.
    there: BTreeMap<WorkerId, BTreeMap<FunctionKey, Sum>>,
}

impl Held {
    /// A container holds a place from now on. One that held another one no longer does.
    pub fn add(&mut self, id: ContainerId, container: Container) {
        self.remove(id);
        let Container { function, worker, amount } = &container;
        self.workers.entry(worker.clone()).or_default().add(*amount);
        self.functions.entry(function.clone()).or_default().add(*amount);
        self.namespaces.entry(function.namespace.clone()).or_default().add(*amount);
        self.there.entry(worker.clone()).or_default().entry(function.clone()).or_default().add(*amount);
        self.containers.insert(id, container);
    }

    /// A container holds no place any more; which one it was.
    pub fn remove(&mut self, id: ContainerId) -> Option<Container> {
        let container = self.containers.remove(&id)?;
        let Container { function, worker, amount } = &container;
        if self.workers.get_mut(worker).is_some_and(|sum| sum.take(*amount)) {
            self.workers.remove(worker);
        }
        if self.functions.get_mut(function).is_some_and(|sum| sum.take(*amount)) {
            self.functions.remove(function);
        }
        if self.namespaces.get_mut(&function.namespace).is_some_and(|sum| sum.take(*amount)) {
            self.namespaces.remove(&function.namespace);
        }
        if let Some(functions) = self.there.get_mut(worker) {
            if functions.get_mut(function).is_some_and(|sum| sum.take(*amount)) {
                functions.remove(function);
            }
            if functions.is_empty() {
                self.there.remove(worker);
            }
        }
        Some(container)
    }

    /// One container.
    pub fn get(&self, id: ContainerId) -> Option<&Container> {
        self.containers.get(&id)
    }

    /// All containers, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ContainerId, &Container)> {
        self.containers.iter().map(|(id, container)| (*id, container))
    }

    /// What is taken of a worker.
    pub fn on(&self, worker: &WorkerId) -> Amount {
        self.workers.get(worker).map_or(Amount::default(), |sum| sum.used)
    }

    /// A function's containers.
    pub fn of(&self, function: &FunctionKey) -> Sum {
        self.functions.get(function).copied().unwrap_or_default()
    }

    /// Functions that have containers, with what those take.
    pub fn functions(&self) -> impl Iterator<Item = (&FunctionKey, Sum)> {
        self.functions.iter().map(|(key, sum)| (key, *sum))
    }

    /// A namespace's containers.
    pub fn of_namespace(&self, namespace: &str) -> Sum {
        self.namespaces.get(namespace).copied().unwrap_or_default()
    }

    /// Namespaces that have containers, with what those take.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, Sum)> {
        self.namespaces.iter().map(|(name, sum)| (name, *sum))
    }

    /// Functions with containers on a worker, with what those take there.
    pub fn there(&self, worker: &WorkerId) -> Option<&BTreeMap<FunctionKey, Sum>> {
        self.there.get(worker)
    }

    /// A function's containers on a worker.
    pub fn of_there(&self, function: &FunctionKey, worker: &WorkerId) -> Sum {
        self.there.get(worker).and_then(|functions| functions.get(function)).copied().unwrap_or_default()
    }

    /// Workers that hold containers.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerId> {
        self.there.keys()
    }

    /// Whether all sums are those of the containers.
    pub fn check(&self) -> Result<(), String> {
        let mut rebuilt = Self::default();
        self.iter().for_each(|(id, container)| rebuilt.add(id, container.clone()));
        if rebuilt == *self { Ok(()) } else { Err(format!("sums are {self:?}, containers have {rebuilt:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_comes_and_goes_all_sums_are_those_of_the_containers(
            steps in prop::collection::vec((0_u64..12, 0_usize..3, 0_usize..3, 0_u64..5), 0..60),
        ) {
            let mut held = Held::default();
            for (id, function, worker, cpu_milli) in steps {
                if cpu_milli == 0 {
                    held.remove(ContainerId(id));
                } else {
                    let function = FunctionKey::new(["a", "a", "b"][function], ["f", "g", "f"][function]);
                    let worker = WorkerId(["v", "w", "x"][worker].into());
                    let amount = Amount { cpu_milli, memory_mib: 1, gpus: 0 };
                    held.add(ContainerId(id), Container { function, worker, amount });
                }
                held.check().unwrap();
            }
            let ids: Vec<_> = held.iter().map(|(id, _)| id).collect();
            ids.into_iter().for_each(|id| drop(held.remove(id)));
            prop_assert_eq!(held, Held::default());
        }
    }
}
