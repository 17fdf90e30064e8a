//! What must always hold of a node, and looks into it for checks.

use super::{
    Node,
    container::{Container, Life},
};
use capstan_common::{
    id::{CallId, ContainerId, FunctionKey, LeaseId},
    report::HeldAttempt,
    resource::Amount,
};
use std::collections::BTreeSet;

impl Node {
    /// Where an input is worked on: for which function, in which container, under which lease. For checks.
    pub fn work_on(&self, call: CallId, index: u64) -> Option<(&FunctionKey, ContainerId, LeaseId)> {
        self.containers.iter().find_map(|(id, container)| {
            let mut held = container.running.values().flat_map(|running| &running.held);
            let lease = held.find(|held| (held.call, held.index) == (call, index))?.lease;
            Some((&container.start.function, *id, lease))
        })
    }

    /// Attempts that a container holds, for checks.
    pub fn attempts(&self, id: ContainerId) -> Vec<HeldAttempt> {
        self.containers.get(&id).map_or(Vec::new(), Container::attempts)
    }

    /// Checks what must always hold: nothing is promised twice, no container works on more than it may.
    pub fn check(&self) -> Result<(), String> {
        let mut used = Amount::default();
        let mut given = BTreeSet::new();
        for (id, container) in &self.containers {
            if !matches!(container.life, Life::Gone(..)) {
                used = used.plus(container.start.amount());
                if container.gpus.len() != container.start.gpus as usize {
                    return Err(format!("{id} has {} GPUs of {}", container.gpus.len(), container.start.gpus));
                }
                if let Some(gpu) = container.gpus.iter().find(|gpu| !given.insert(**gpu)) {
                    return Err(format!("GPU {gpu} is given to {id} and to another"));
                }
            }
            if container.running.len() > container.at_once as usize {
                return Err(format!("{id} works on {} groups, may on {}", container.running.len(), container.at_once));
            }
        }
        if used != self.used || !self.capacity.covers(used) {
            return Err(format!("{used:?} used, counted {:?}, of {:?}", self.used, self.capacity));
        }
        Ok(())
    }
}
