//! A function at the scheduler that believes to own it: its core, and its shell's state.

use super::{check::Given, engine::World, visitors::Visitors};
use capstan_common::{
    id::{Epoch, Shard},
    time::Time,
};
use capstan_scheduler_core::{effect::Promise, function::Function, record::Record};

/// Which function at which scheduler, and in which of its lives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    pub scheduler: usize,
    pub function: usize,
    pub generation: u64,
}

/// A function with its shell's state.
pub struct Hosted {
    /// Gone once the shard is given up; what is under way is still written.
    pub core: Option<Function>,
    pub epoch: Epoch,
    pub shard: Shard,
    pub generation: u64,
    pub records: Vec<Record>,
    pub promises: Vec<Promise>,
    /// Promises of the commit under way.
    pub under_way: Option<Vec<Promise>>,
    pub alarm_at: Option<Time>,
    pub given: Given,
    pub visitors: Visitors,
}

impl Hosted {
    /// A core that begins.
    pub fn new(core: Function, shard: Shard, epoch: Epoch, generation: u64) -> Self {
        Self {
            core: Some(core),
            epoch,
            shard,
            generation,
            records: Vec::new(),
            promises: Vec::new(),
            under_way: None,
            alarm_at: None,
            given: Given::default(),
            visitors: Visitors::default(),
        }
    }

    /// Whether nothing waits to be written and nobody waits for an answer.
    pub fn is_quiet(&self) -> bool {
        self.under_way.is_none() && self.records.is_empty() && self.visitors.is_empty()
    }
}

impl World {
    /// The function there, unless that life of it is over.
    pub(super) fn host(&mut self, at: At) -> Option<&mut Hosted> {
        let host = self.schedulers[at.scheduler].hosts.get_mut(&at.function)?;
        (host.generation == at.generation).then_some(host)
    }

    /// Where the function lives at a scheduler.
    pub(super) fn at(&self, scheduler: usize, function: usize) -> Option<At> {
        let host = self.schedulers[scheduler].hosts.get(&function).filter(|host| host.core.is_some())?;
        Some(At { scheduler, function, generation: host.generation })
    }

    /// Where the function's requests go: to one that believes to own it, also if it is mistaken.
    pub(super) fn owner(&self, function: usize) -> Option<At> {
        let believes = (0..self.schedulers.len()).filter_map(|s| self.at(s, function));
        // The longer it has believed so, the more it may be mistaken: the newest is found last.
        believes.max_by_key(|at| at.generation)
    }

    /// All that believe to own the function.
    pub(super) fn believers(&self, function: usize) -> Vec<At> {
        (0..self.schedulers.len()).filter_map(|s| self.at(s, function)).collect()
    }
}
