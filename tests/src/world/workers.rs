//! Workers: the real node core, with processes played by chance.

use super::engine::{Action, World};
use capstan_common::{
    container::Ending,
    container_spec::ContainerSpec,
    function::Protocol,
    id::{ContainerId, LeaseId, WorkerId},
    input::{Failure, FailureKind},
    order::Assignment,
    resource::Amount,
    time::Time,
};
use capstan_worker_core::node::{Effect, Event, Node};
use rand::Rng;

/// A worker.
pub struct Worker {
    /// Its name.
    pub id: WorkerId,
    /// Its core.
    pub node: Node,
    /// Counts its lives: what was planned for an earlier one does not happen.
    pub life: u32,
    /// It reaches nobody before that.
    pub dials_from: Time,
    /// Waits for its alarm.
    pub alarm_at: Option<Time>,
}

/// What a simulated worker has.
pub const CAPACITY: Amount = Amount { cpu_milli: 4_000, memory_mib: 16_384, gpus: GPUS.len() as u64 };
/// The model of its GPUs.
pub const GPU: &str = "H100";
/// A function with this start-up time-out starts slowly.
pub const SLOW_START_S: u64 = 77;
const GPUS: [&str; 2] = ["GPU-0", "GPU-1"];

impl Worker {
    /// A fresh one.
    pub fn new(number: usize) -> Self {
        Self {
            id: WorkerId(format!("w{number:04}").into()),
            node: Node::new(CAPACITY, GPUS.map(Into::into).to_vec()),
            life: 0,
            dials_from: Time(0),
            alarm_at: None,
        }
    }
}

impl World {
    /// One step of a worker's core.
    pub(super) fn step_node(&mut self, w: usize, event: Event) -> Result<(), String> {
        let now = self.now;
        let mut out = Vec::new();
        self.workers[w].node.step(now, event, &mut out);
        self.workers[w].node.check()?;
        for effect in out {
            self.node_effect(w, effect)?;
        }
        let due = self.workers[w].node.next_alarm();
        if let Some(due) = due.filter(|due| self.workers[w].alarm_at.is_none_or(|set| set > *due)) {
            self.workers[w].alarm_at = Some(due);
            let life = self.workers[w].life;
            self.plan(due, Action::NodeAlarm { worker: w, life });
        }
        Ok(())
    }

    fn node_effect(&mut self, w: usize, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Tell(link, report) => self.send_up(link, report),
            Effect::Launch { start, .. } => self.launch(w, start.container, &start.spec),
            Effect::Run { container, group, assignments, .. } => {
                self.check_alone(w, &assignments)?;
                self.work(w, container, group, &assignments);
            }
            Effect::Interrupt { container, group } => {
                // An exec process that is interrupted reports its end; a server's connection is just dropped.
                let exec = self.workers[w].node.spec(container).is_some_and(|s| s.protocol == Protocol::Exec);
                if exec {
                    let results = Vec::new();
                    self.happen(w, 10, 500, Event::Worked { container, group, results, run_us: 0 });
                }
            }
            Effect::Terminate { container, reason, .. } => {
                let ending = Ending { reason, exit_code: Some(0), ..Ending::default() };
                self.happen(w, 100, 20_000, Event::Exited { container, ending });
            }
        }
        Ok(())
    }

    /// Something will happen on a worker, unless it dies first.
    fn happen(&mut self, w: usize, least_us: u64, most_us: u64, event: Event) {
        let at = self.after(least_us, most_us);
        let life = self.workers[w].life;
        self.plan(at, Action::Node { worker: w, life, event });
    }

    fn launch(&mut self, w: usize, container: ContainerId, spec: &ContainerSpec) {
        let slow = spec.startup_timeout_ms == SLOW_START_S * 1000;
        self.happen(w, 100, 1_000, Event::Spawned { container, pid: 1 });
        if self.chance(3) {
            let ending =
                Ending { reason: "it ended before it was ready".into(), exit_code: Some(1), ..Ending::default() };
            self.happen(w, 1_100, 50_000, Event::Exited { container, ending });
            return;
        }
        let most = if slow { 3_000_000 } else { 30_000 };
        self.happen(w, 1_100, most, Event::Ready { container, phases: Vec::new(), port: 0 });
    }

    fn work(&mut self, w: usize, container: ContainerId, group: LeaseId, assignments: &[Assignment]) {
        if self.chance(1) && self.chance(20) {
            let ending = Ending { reason: "it ended by itself".into(), signal: Some(9), ..Ending::default() };
            self.happen(w, 10, 5_000, Event::Exited { container, ending });
            return;
        }
        let long = self.chance(2);
        let run_us = if long { self.rng.random_range(10_000..1_500_000) } else { self.rng.random_range(20..3_000) };
        let fails = self.chance(6);
        let timeout = fails && self.chance(10);
        let results = assignments
            .iter()
            .map(|a| {
                let kind = if timeout { FailureKind::Timeout } else { FailureKind::Function };
                let failure = || Failure::new(kind, "Simulated", "by chance");
                (a.lease, if fails { Err(failure()) } else { Ok(a.payload.clone()) })
            })
            .collect();
        self.happen(w, run_us, run_us, Event::Worked { container, group, results, run_us });
    }
}
