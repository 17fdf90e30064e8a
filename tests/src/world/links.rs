//! Links between workers and schedulers: each keeps its order, may be slow, silent or cut, and begins with what the worker holds.

use super::{
    engine::{Action, World},
    shell::SLOW,
    workers,
};
use capstan_common::{
    id::{LinkId, Shard, WorkerId},
    order::Order,
    report::{Held, Report},
    time::Time,
    worker::WorkerState,
};
use capstan_scheduler_core::{autoscaler, event::Event};
use capstan_worker_core::node;
use std::collections::BTreeMap;

/// How long a link may be silent.
pub const SILENCE_MS: u64 = 3_000;
/// How long a worker may be unreachable before it is lost.
pub const LOST_MS: u64 = 7_000;
/// The pause between two beats.
const BEAT_MS: u64 = 500;

/// A link that stands.
#[derive(Debug, Clone)]
pub struct Link {
    /// Between which worker.
    pub worker: usize,
    /// And which scheduler.
    pub scheduler: usize,
    /// When the last message of each direction arrives.
    pub down_at: Time,
    /// See `down_at`.
    pub up_at: Time,
    /// No order passes before that.
    pub down_cut_until: Time,
    /// What passes takes long until then.
    pub slow_until: Time,
    /// No report passes before that.
    pub up_cut_until: Time,
}

impl World {
    /// All links of a scheduler.
    pub(super) fn links_of(&self, s: usize) -> Vec<LinkId> {
        self.links.iter().filter(|(_, link)| link.scheduler == s).map(|(id, _)| *id).collect()
    }

    /// All links of a worker.
    pub(super) fn links_with(&self, w: usize) -> Vec<LinkId> {
        self.links.iter().filter(|(_, link)| link.worker == w).map(|(id, _)| *id).collect()
    }

    /// The link between the two, if it stands.
    pub(super) fn link_between(&self, s: usize, worker: &WorkerId) -> Option<LinkId> {
        let w = self.worker_number(worker)?;
        self.links.iter().find(|(_, link)| (link.worker, link.scheduler) == (w, s)).map(|(id, _)| *id)
    }

    /// A worker dials a scheduler.
    pub(super) fn join(&mut self, w: usize, s: usize) -> Result<(), String> {
        let there = self.links.values().any(|link| (link.worker, link.scheduler) == (w, s));
        if there || !self.schedulers[s].runs {
            return Ok(());
        }
        let dials_from = self.workers[w].dials_from;
        let later = self.schedulers[s].stopped_until.or(Some(dials_from).filter(|from| *from > self.now));
        if let Some(later) = later {
            let life = self.workers[w].life;
            self.plan(later, Action::Join { worker: w, life, scheduler: s });
            return Ok(());
        }
        self.note(&format!("worker {w} joins scheduler {s}"));
        let id = LinkId(self.next());
        let link = Link {
            worker: w,
            scheduler: s,
            down_at: Time(0),
            up_at: Time(0),
            down_cut_until: Time(0),
            slow_until: Time(0),
            up_cut_until: Time(0),
        };
        self.links.insert(id, link);
        self.schedulers[s].parted.remove(&w);
        let shards: BTreeMap<_, _> = self.schedulers[s].shards.clone();
        self.schedulers[s].untold.insert(id, shards.keys().copied().collect());
        for (shard, epoch) in &shards {
            self.claim(id, *shard, *epoch);
        }
        if shards.is_empty() {
            self.told_all(id);
        }
        if self.is_clustered() {
            self.plan(self.now, Action::Beat { link: id });
        }
        Ok(())
    }

    /// The worker tells what containers of other owners take.
    pub(super) fn beat(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let others = self.workers[link.worker].node.others(id);
        self.send_up(id, Report::Beat { sequence: 0, others, free_gpus: Vec::new() });
        let at = self.now.plus_ms(BEAT_MS);
        self.plan(at, Action::Beat { link: id });
    }

    /// Sends an order down a link that stands, as soon as the scheduler is sure of its lease.
    pub(super) fn send_down(&mut self, id: LinkId, order: Order) {
        let Some(link) = self.links.get(&id) else { return };
        let scheduler = &mut self.schedulers[link.scheduler];
        if scheduler.sure_until <= self.now {
            scheduler.held.push((id, order));
            return;
        }
        let at = self.on_its_way(id);
        let Some(link) = self.links.get_mut(&id) else { return };
        link.down_at = at.max(Time(link.down_at.0 + 1)).max(link.down_cut_until);
        let at = link.down_at;
        self.plan(at, Action::Down { link: id, order });
    }

    /// What waited while the lease was in doubt goes on its way.
    pub(super) fn release_held(&mut self, s: usize) {
        if self.schedulers[s].sure_until <= self.now {
            return;
        }
        for (link, order) in std::mem::take(&mut self.schedulers[s].held) {
            self.send_down(link, order);
        }
    }

    /// An order of a shard's owner; it is lost where the worker has not told what it holds, as the inventory will show.
    pub(super) fn order(&mut self, s: usize, shard: Shard, worker: &WorkerId, order: Order) {
        let Some(w) = self.worker_number(worker) else { return };
        if !self.schedulers[s].told.contains(&(w, shard)) {
            return;
        }
        if let Some(link) = self.link_between(s, worker) {
            self.send_down(link, order);
        }
    }

    /// When what is sent on a link now would arrive, if nothing were before it.
    fn on_its_way(&mut self, id: LinkId) -> Time {
        let slow = self.links.get(&id).is_some_and(|link| link.slow_until > self.now);
        self.after(50, if slow { 3_000 * SLOW } else { 3_000 })
    }

    pub(super) fn send_up(&mut self, id: LinkId, report: Report) {
        let at = self.on_its_way(id);
        let Some(link) = self.links.get_mut(&id) else { return };
        link.up_at = at.max(Time(link.up_at.0 + 1)).max(link.up_cut_until);
        let at = link.up_at;
        // A report that arrives twice must change nothing the second time; what a worker holds it tells once for each owner, and
        // the stream keeps its order.
        if self.chance(2) && !matches!(report, Report::Inventory { .. }) {
            self.plan(at, Action::Up { link: id, report: report.clone() });
        }
        self.plan(at, Action::Up { link: id, report });
    }

    /// Both sides learn that a link is gone; what was under way is lost.
    pub(super) fn break_link(&mut self, id: LinkId) -> Result<(), String> {
        let Some(Link { worker: w, scheduler: s, .. }) = self.links.remove(&id) else { return Ok(()) };
        self.step_node(w, node::Event::Parted { link: id })?;
        let scheduler = &mut self.schedulers[s];
        scheduler.untold.remove(&id);
        scheduler.told.retain(|(told, _)| *told != w);
        scheduler.parted.insert(w, self.now);
        scheduler.held.retain(|(link, _)| *link != id);
        let life = scheduler.life;
        let worker = self.workers[w].id.clone();
        self.tell_autoscaler(s, autoscaler::Event::Turned { worker, state: WorkerState::Unreachable })?;
        let (at, parted) = (self.now.plus_ms(LOST_MS), self.now);
        self.plan(at, Action::Lose { worker: w, scheduler: s, life, parted });
        // It dials again, unless the process is gone: then the next one is dialled.
        let again = self.after(1_000, 1_000_000);
        let life = self.workers[w].life;
        self.plan(again, Action::Join { worker: w, life, scheduler: s });
        Ok(())
    }

    /// A worker has told what it holds of a shard: every function of it hears that, before it may send orders there.
    pub(super) fn inventory(&mut self, id: LinkId, shard: Shard, held: Vec<Held>) -> Result<(), String> {
        let Some(Link { worker: w, scheduler: s, .. }) = self.links.get(&id).cloned() else { return Ok(()) };
        let worker = self.workers[w].id.clone();
        let Some(epoch) = self.schedulers[s].shards.get(&shard).copied() else { return self.told_of(id, shard) };
        for at in self.hosts_of(s, shard) {
            let key = self.functions[at.function].key.clone();
            let held: Vec<_> = held.iter().filter(|h| h.function == key).cloned().collect();
            self.schedulers[s].routes.extend(held.iter().map(|h| (h.container, at.function)));
            // What it has to say at once goes out behind what it has learnt.
            self.schedulers[s].told.insert((w, shard));
            self.step_function(at, Event::Inventory { worker: worker.clone(), held })?;
        }
        self.schedulers[s].told.insert((w, shard));
        self.told_of(id, shard)?;
        let awaited = self.schedulers[s].awaited.get_mut(&shard);
        let last = awaited.is_some_and(|awaited| awaited.remove(&w) && awaited.is_empty());
        if last { self.settle(s, shard, epoch) } else { Ok(()) }
    }

    /// What the worker holds of all shards is accounted before any of it could be promised again.
    pub(super) fn told_of(&mut self, id: LinkId, shard: Shard) -> Result<(), String> {
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        let untold = self.schedulers[link.scheduler].untold.get_mut(&id);
        if untold.is_some_and(|untold| untold.remove(&shard) && untold.is_empty()) {
            self.told_all(id);
        }
        Ok(())
    }

    /// The worker takes containers from here on.
    pub(super) fn told_all(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let (s, worker) = (link.scheduler, self.workers[link.worker].id.clone());
        if self.schedulers[s].untold.remove(&id).is_none() {
            return;
        }
        let (capacity, gpu, state) = (workers::CAPACITY, workers::GPU.into(), WorkerState::Ready);
        let joined = self.tell_autoscaler(
            s,
            autoscaler::Event::Joined { worker, capacity, gpu, ground: Default::default(), state, flaps: false },
        );
        joined.expect("a worker that joins breaks nothing");
    }

    /// A worker was silent for too long: what it held runs elsewhere.
    pub(super) fn lose(&mut self, w: usize, s: usize, parted: Time) -> Result<(), String> {
        if self.schedulers[s].parted.get(&w) != Some(&parted) {
            return Ok(());
        }
        let worker = self.workers[w].id.clone();
        self.note(&format!("worker {w} is lost to scheduler {s}"));
        self.tell_autoscaler(s, autoscaler::Event::Lost { worker: worker.clone() })?;
        let functions: Vec<usize> = self.schedulers[s].hosts.keys().copied().collect();
        for at in functions.into_iter().filter_map(|f| self.at(s, f)).collect::<Vec<_>>() {
            self.step_function(at, Event::WorkerLost { worker: worker.clone() })?;
        }
        Ok(())
    }
}
