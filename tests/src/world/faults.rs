//! Faults: the scheduler's crash, workers' crashes, links that break.

use super::{
    engine::{Action, World},
    workers::{LINK, Worker},
};
use capstan_common::{
    id::{Epoch, Revision, Shard},
    order::Order,
    worker::WorkerState,
};
use capstan_scheduler_core::{
    autoscaler::{self, Autoscaler},
    effect::Output,
    event::Event,
    function::Function,
};
use capstan_worker_core::node;
use rand::Rng;

impl World {
    /// One fault, chosen by chance.
    pub(super) fn fault(&mut self) -> Result<(), String> {
        self.report.faults += 1;
        match self.rng.random_range(0..10) {
            0..=2 => self.crash_scheduler()?,
            3..=4 => {
                let w = self.rng.random_range(0..self.workers.len());
                self.crash_worker(w)?;
            }
            5..=7 => {
                let w = self.rng.random_range(0..self.workers.len());
                self.cut(w)?;
            }
            _ => self.stop_some_container()?,
        }
        Ok(())
    }

    /// Everything that was not durable is forgotten; a new owner starts from the store.
    fn crash_scheduler(&mut self) -> Result<(), String> {
        self.note("the scheduler crashes");
        self.epoch = Epoch(self.epoch.0 + 1);
        self.autoscaler = Autoscaler::new(self.epoch);
        #[cfg(feature = "mutants")]
        self.autoscaler.plant(self.plan.mutant);
        for w in 0..self.workers.len() {
            self.break_link(w)?;
            let at = self.after(1_000, 400_000);
            let life = self.workers[w].life;
            self.plan(at, Action::Join { worker: w, life });
        }
        for f in 0..self.functions.len() {
            let function = &mut self.functions[f];
            function.generation += 1;
            function.records.clear();
            function.promises.clear();
            function.under_way = None;
            function.alarm_at = None;
            function.given = Default::default();
            // Their connections ended with the process.
            function.visitors.clear();
            let mut out = Output::default();
            let (limits, key) = (self.limits.clone(), function.key.clone());
            function.core = match function.durable.recovery(&key) {
                Some(recovery) => Function::recover(recovery, self.epoch, limits, self.now, &mut out),
                None => {
                    // Its deployment was not durable: whoever deployed it heard no answer and does it again.
                    let spec = (function.core.deployment().spec.clone(), Revision(0));
                    let deployed = Function::deploy(key, self.epoch, limits, self.now, spec, &mut out);
                    deployed.map_err(|refusal| refusal.to_string())?
                }
            };
            function.core.check()?;
            self.perform(f, out)?;
        }
        let settle = self.now.plus_ms(self.limits.adopt_grace_ms);
        let epoch = self.epoch;
        self.plan(settle, Action::Settle { epoch });
        self.clients_after_crash();
        Ok(())
    }

    fn crash_worker(&mut self, w: usize) -> Result<(), String> {
        self.note(&format!("worker {w} crashes"));
        self.break_link(w)?;
        let life = self.workers[w].life + 1;
        let link = self.workers[w].link;
        self.workers[w] = Worker { life, link, ..Worker::new(w) };
        // Sometimes it is away for longer than the scheduler waits.
        let most = if self.chance(30) { 30_000_000 } else { 2_000_000 };
        let at = self.after(10_000, most);
        self.plan(at, Action::Join { worker: w, life });
        Ok(())
    }

    fn cut(&mut self, w: usize) -> Result<(), String> {
        self.note(&format!("the link of worker {w} breaks"));
        self.break_link(w)?;
        let most = if self.chance(20) { 30_000_000 } else { 1_000_000 };
        let at = self.after(1_000, most);
        let life = self.workers[w].life;
        self.plan(at, Action::Join { worker: w, life });
        Ok(())
    }

    /// Both sides learn it; what was under way is lost.
    fn break_link(&mut self, w: usize) -> Result<(), String> {
        if !self.workers[w].linked {
            return Ok(());
        }
        self.workers[w].linked = false;
        self.workers[w].link += 1;
        self.step_node(w, node::Event::Parted { link: LINK })?;
        let id = self.workers[w].id.clone();
        let state = WorkerState::Unreachable;
        self.tell_autoscaler(autoscaler::Event::Turned { worker: id, state })?;
        let lost = self.now.plus_ms(10_000);
        let link = self.workers[w].link;
        self.plan(lost, Action::Lose { worker: w, link });
        Ok(())
    }

    /// A worker's link stands again: it says what it holds, and every function hears it.
    pub(super) fn join(&mut self, w: usize) -> Result<(), String> {
        if self.workers[w].linked {
            return Ok(());
        }
        self.note(&format!("worker {w} joins"));
        self.workers[w].linked = true;
        self.workers[w].link += 1;
        let own = Order::Own { shard: Shard(0), shards: 1, epoch: self.epoch };
        let inventory = self.workers[w].node.inventory(Shard(0));
        let id = self.workers[w].id.clone();
        let capacity = super::workers::CAPACITY;
        for f in 0..self.functions.len() {
            let held: Vec<_> = inventory.iter().filter(|h| h.function == self.functions[f].key).cloned().collect();
            self.routes.extend(held.iter().map(|h| (h.container, f)));
            self.step_function(f, Event::Inventory { worker: id.clone(), held })?;
        }
        self.tell_autoscaler(autoscaler::Event::Joined { worker: id, capacity, state: WorkerState::Ready })?;
        self.step_node(w, node::Event::Ordered { link: LINK, order: own })
    }

    pub(super) fn lose(&mut self, w: usize) -> Result<(), String> {
        let worker = self.workers[w].id.clone();
        self.note(&format!("worker {w} is lost"));
        self.tell_autoscaler(autoscaler::Event::Lost { worker: worker.clone() })?;
        for f in 0..self.functions.len() {
            self.step_function(f, Event::WorkerLost { worker: worker.clone() })?;
        }
        Ok(())
    }

    fn stop_some_container(&mut self) -> Result<(), String> {
        let f = self.rng.random_range(0..self.functions.len());
        let ids: Vec<_> = self.functions[f].core.containers().map(|c| c.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let container = ids[self.rng.random_range(0..ids.len())];
        self.note(&format!("an operator stops {container}"));
        self.stoppable.insert(container);
        self.step_function(f, Event::StopContainer { container })
    }
}
