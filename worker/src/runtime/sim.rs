//! Containers without processes, for trying how a cluster behaves with more machines than there are: each is ready after a
//! while, and gives every input back after another.

use crate::{actor::Tell, protocol::Results};
use capstan_common::{container::Ending, id::LeaseId, order::Assignment};
use capstan_worker_core::node::Event;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};
use tokio_util::task::AbortOnDropHandle;

/// One container.
pub struct Simulated {
    tell: Tell,
    run: Duration,
    groups: Rc<RefCell<BTreeMap<LeaseId, AbortOnDropHandle<()>>>>,
    _starting: AbortOnDropHandle<()>,
}

impl Simulated {
    /// Ready after `start`; each input takes `run`.
    pub fn launch(tell: Tell, start: Duration, run: Duration) -> Self {
        let told = tell.clone();
        let starting = actix::spawn(async move {
            tokio::time::sleep(start).await;
            told.tell(Event::Spawned { container: told.container, pid: 0 }).await;
            told.tell(Event::Ready { container: told.container, phases: Vec::new(), port: 0 }).await;
        });
        Self { tell, run, groups: Rc::default(), _starting: AbortOnDropHandle::new(starting) }
    }

    /// Works on a group.
    pub fn work(&self, group: LeaseId, assignments: Vec<Assignment>) {
        let (tell, run, groups) = (self.tell.clone(), self.run, self.groups.clone());
        let task = actix::spawn(async move {
            tokio::time::sleep(run).await;
            let results: Results = assignments.into_iter().map(|a| (a.lease, Ok(a.payload))).collect();
            let run_us = run.as_micros() as u64;
            tell.tell(Event::Worked { container: tell.container, group, results, run_us }).await;
            groups.borrow_mut().remove(&group);
        });
        self.groups.borrow_mut().insert(group, AbortOnDropHandle::new(task));
    }

    /// Interrupts a group; its results are not wanted, but that it is over is told.
    pub fn interrupt(&self, group: LeaseId) {
        if self.groups.borrow_mut().remove(&group).is_some() {
            let tell = self.tell.clone();
            let over = Event::Worked { container: tell.container, group, results: Results::new(), run_us: 0 };
            actix::spawn(async move { tell.tell(over).await });
        }
    }

    /// Ends.
    pub fn terminate(&self, reason: String) {
        self.groups.borrow_mut().clear();
        let tell = self.tell.clone();
        actix::spawn(async move { tell.exited(Ending { reason, exit_code: Some(0), ..Ending::default() }).await });
    }
}
