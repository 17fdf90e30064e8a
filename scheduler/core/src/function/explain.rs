//! What is, and why: read from the state and the recorded decisions, never guessed.

use super::Function;
use crate::{
    decision::{Decision, Waiting},
    record::Tries,
};
use capstan_common::{
    call::{CallKind, CallState, Counts},
    container::ContainerState,
    function::{AutoscalerSettings, Overrides},
    id::{CallId, ContainerId, Revision, WorkerId},
    time::Time,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// A function's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Inputs that wait.
    pub backlog: u64,
    /// Inputs held by containers.
    pub running: u64,
    /// Containers by state.
    pub containers: BTreeMap<ContainerState, u32>,
    /// Containers wanted.
    pub desired: u32,
    /// Outcomes that came after their lease had ended.
    pub late_outcomes: u64,
}

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
            desired: self.wanted,
            late_outcomes: self.late_outcomes,
        }
    }

    /// Inputs that wait.
    pub fn backlog(&self) -> u64 {
        self.facts().pending
    }

    /// The latest decisions, newest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().rev()
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
        })
    }

    /// A live call's kind, counts and state.
    pub fn call(&self, id: CallId) -> Option<(CallKind, Counts, CallState)> {
        self.calls.get(&id).map(|c| (c.kind, c.counts, c.state())).or_else(|| self.parked_view(id))
    }

    /// Why inputs wait, or why there are fewer containers than wanted, if that is so.
    pub fn waiting(&self) -> Option<Waiting> {
        let facts = self.facts();
        (facts.pending > 0 || facts.live < self.wanted).then(|| self.why())
    }

    fn why(&self) -> Waiting {
        let facts = self.facts();
        if self.holding {
            return Waiting::new("recovering", "after a restart, known workers are asked what they still hold");
        }
        if self.store_full {
            return Waiting::new(
                "store",
                "the store has room for the ends of what runs, and for nothing more: free some space on its disk, or cancel calls",
            );
        }
        if self.starts.failed > 0 {
            let detail = format!(
                "{} starts in a row failed, the next is tried at most {} s after the last; last: {}",
                self.starts.failed,
                self.limits.start_backoff_max_ms / 1000,
                self.starts.last
            );
            return Waiting::new("image_backoff", detail);
        }
        if let Some(why) = &self.unplaced {
            return why.clone();
        }
        if facts.starting > 0 && facts.starting == facts.live {
            let found = self.starts.looked.as_ref().map_or_else(String::new, |looked| format!(": {looked}"));
            let count = match facts.starting {
                1 => "a container is starting".to_owned(),
                more => format!("{more} containers are starting"),
            };
            return Waiting::new("starting", count + &found);
        }
        if self.batch_due().is_some() {
            return Waiting::new(
                "batch",
                "a batch is being collected and leaves when it is full or its wait_ms has passed",
            );
        }
        if self.queue.ready() == 0 && !self.delayed.is_empty() && !self.web.waits() {
            return Waiting::new("retry_backoff", "every waiting input pauses before its next attempt");
        }
        if self.queue.ready() == 0 && self.has_live() && !self.web.waits() {
            let detail = format!("a map runs at most {} inputs at once", self.limits.map_running);
            return Waiting::new("map_limit", detail);
        }
        if facts.live >= facts.max {
            let detail = format!("max_containers is {} and all containers are busy", facts.max);
            return Waiting::new("max_containers", detail);
        }
        Waiting::new("busy", format!("all {} containers are busy", facts.live))
    }

    /// Where an input of a live call is. `None`: it ended, or does not exist.
    pub fn input(&self, id: CallId, index: u64) -> Option<InputView> {
        if self.parked.has(id) {
            let submitted = Time(id.born_ms() * 1000);
            return (index == 0).then(|| InputView::Pending { submitted, tries: None, why: self.why() });
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
        if let Some((due, input)) = self.delayed.find(id, index) {
            let wait_s = due.since_ms(self.now) as f64 / 1000.0;
            let failed = input.failures();
            return Some(InputView::Pending {
                submitted: input.submitted,
                tries: input.tries.clone(),
                why: Waiting::new("retry_backoff", format!("attempt {failed} failed, the next begins in {wait_s} s")),
            });
        }
        let known = self.queue.find(id, index);
        let submitted = known.map_or(call.created, |q| q.submitted);
        let stored_tries = || call.bulk.as_ref().and_then(|b| b.attempted.get(&index).cloned());
        let tries = known.map_or_else(stored_tries, |q| q.tries.clone());
        let stored = call.bulk.as_ref().is_some_and(|bulk| {
            let unloaded = bulk.tail.iter().chain(bulk.loading.values());
            let mut holding = unloaded.filter(|s| (s.first..s.first + u64::from(s.count)).contains(&index));
            holding.next().is_some() && !bulk.ended.has(index)
        });
        (known.is_some() || stored).then(|| InputView::Pending { submitted, tries, why: self.why() })
    }
}
