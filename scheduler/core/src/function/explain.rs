//! What is, and why: read from the state and the recorded decisions, never guessed.

use super::Function;
use crate::{
    decision::{Choice, Decision, Waiting},
    record::Tries,
};
use capstan_common::{
    call::{CallKind, CallState, Counts},
    container::ContainerState,
    function::{AutoscalerSettings, Overrides},
    id::{CallId, ContainerId, Revision, WorkerId},
    stats::Stats,
    time::Time,
};
use std::collections::BTreeMap;

/// A container as its function's owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Where it is.
    pub worker: WorkerId,
    /// Of which revision.
    pub revision: Revision,
    /// Its state.
    pub state: ContainerState,
    /// When its start was decided.
    pub decided: Time,
    /// Inputs and web requests that it holds.
    pub inputs: u32,
    /// Where its server listens on its worker; 0 if it is none, or not ready.
    pub port: u16,
    /// Whether it runs as its worker's user.
    pub trusted: bool,
    /// Why it is where it is; of an adopted one that is not known.
    pub chosen: Option<Choice>,
}

/// Where a live input is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputView {
    /// It waits.
    Pending {
        /// When it arrived.
        submitted: Time,
        /// Attempts so far.
        tries: Option<Box<Tries>>,
        /// Why.
        why: Waiting,
    },
    /// A container holds it.
    Running {
        /// When it arrived.
        submitted: Time,
        /// When it was given out.
        given: Time,
        /// Attempts before this one.
        tries: Option<Box<Tries>>,
        /// To which container.
        container: ContainerId,
        /// On which worker.
        worker: WorkerId,
    },
}

impl Function {
    /// The numbers of `…/stats`.
    pub fn stats(&self) -> Stats {
        let facts = self.facts();
        let states = [ContainerState::Starting, ContainerState::Idle, ContainerState::Busy, ContainerState::Draining];
        let mut containers: BTreeMap<_, u32> = states.into_iter().map(|s| (s, 0)).collect();
        for (_, container) in self.pool.iter() {
            *containers.entry(container.state()).or_default() += 1;
        }
        Stats {
            backlog: facts.pending,
            running: facts.running,
            containers,
            desired: self.sizing.wanted(),
            late_outcomes: self.late_outcomes,
        }
    }

    /// Inputs that wait.
    pub fn backlog(&self) -> u64 {
        self.facts().pending
    }

    /// The latest decisions, newest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.sizing.decisions()
    }

    /// When the revision's latest containers became ready, and how long each took from its place to there, in microseconds.
    pub fn starts(&self) -> impl Iterator<Item = (Time, u64)> {
        self.starts.took.iter().copied()
    }

    /// Deployed, overriding and effective settings.
    pub fn settings(&self) -> (&AutoscalerSettings, &Overrides, &AutoscalerSettings) {
        (&self.deployed.spec.autoscaler, &self.overrides, &self.effective)
    }

    /// Its containers, by id.
    pub fn containers(&self) -> impl Iterator<Item = ContainerView> {
        self.pool.iter().map(|(id, c)| ContainerView {
            id,
            worker: c.worker.clone(),
            revision: c.revision,
            state: c.state(),
            decided: c.decided,
            inputs: (c.leases.len() + c.requests.len()) as u32,
            port: c.port,
            trusted: c.trusted,
            chosen: c.chosen,
        })
    }

    /// A live call's kind, counts and state.
    pub fn call(&self, id: CallId) -> Option<(CallKind, Counts, CallState)> {
        self.calls.get(&id).map(|c| (c.kind, c.counts, c.state())).or_else(|| self.parked_view(id))
    }

    /// Inputs of a call that containers hold, by index: where, and how many attempts of each have begun.
    pub fn running_of(&self, id: CallId) -> BTreeMap<u64, (ContainerId, u32)> {
        let held = self.pool.iter().flat_map(|(container, c)| c.leases.values().map(move |lease| (container, lease)));
        let ours = held.filter(|(_, lease)| lease.input.call == id);
        ours.map(|(container, lease)| {
            let before = lease.input.tries.as_ref().map_or(0, |tries| tries.count());
            (lease.input.index, (container, before + 1))
        })
        .collect()
    }

    /// Where an input of a live call is. `None`: it ended, or does not exist.
    pub fn input(&self, id: CallId, index: u64) -> Option<InputView> {
        if self.parked.has(id) {
            let submitted = Time(id.born_ms() * 1000);
            let why = self.input_waits(id, index).told(self.now);
            return (index == 0).then_some(InputView::Pending { submitted, tries: None, why });
        }
        let call = self.calls.get(&id)?;
        for (container, c) in self.pool.iter() {
            let held = c.leases.values().find(|l| l.input.call == id && l.input.index == index);
            if let Some(lease) = held {
                return Some(InputView::Running {
                    submitted: lease.input.submitted,
                    given: lease.given,
                    tries: lease.input.tries.clone(),
                    container,
                    worker: c.worker.clone(),
                });
            }
        }
        let why = || self.input_waits(id, index).told(self.now);
        if let Some((_, input)) = self.delayed.find(id, index) {
            return Some(InputView::Pending { submitted: input.submitted, tries: input.tries.clone(), why: why() });
        }
        let known = self.queue.find(id, index);
        let submitted = known.map_or(call.created, |q| q.submitted);
        let stored_tries = || call.bulk.as_ref().and_then(|b| b.attempted.get(&index).cloned());
        let tries = known.map_or_else(stored_tries, |q| q.tries.clone());
        let stored = call.bulk.as_ref().is_some_and(|bulk| {
            let mut unloaded = bulk.tail.iter().chain(bulk.loading.values());
            unloaded.any(|segment| segment.covers(index)) && !bulk.ended.has(index)
        });
        (known.is_some() || stored).then(|| InputView::Pending { submitted, tries, why: why() })
    }
}
