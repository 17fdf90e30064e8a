//! Schedulers: they keep a lease, look at what should be, take and give up shards, and forget everything when they die. The
//! same rules as the real keeper's: what should be is computed by the real `ownership`.

use super::{
    engine::{Action, World},
    host::{At, Hosted},
    keys::{LEASE_MS, Lease},
};
use capstan_common::{
    id::{ContainerId, Epoch, LinkId, Revision, Shard},
    order::Order,
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler::{self, Autoscaler},
    effect::Output,
    event::Event,
    function::Function,
    ownership::{self, Member},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The pause between two looks.
const LOOK_MS: u64 = 200;

/// A scheduler's process.
pub struct Scheduler {
    /// Its name.
    pub name: Member,
    /// Counts its lives and its sessions: what was planned for an earlier one does not happen.
    pub life: u32,
    /// Whether the process exists.
    pub runs: bool,
    /// It gives everything up, and then ends.
    pub leaves: bool,
    /// Stopped, as by SIGSTOP, until then.
    pub stopped_until: Option<Time>,
    /// Nothing passes between it and etcd until then.
    pub cut_off_until: Time,
    /// What passes between it and etcd takes long until then.
    pub slow_until: Time,
    /// Its lease is sure to hold until then: before that it may act.
    pub sure_until: Time,
    /// Its autoscaler.
    pub autoscaler: Autoscaler,
    /// Shards that it believes to own.
    pub shards: BTreeMap<Shard, Epoch>,
    /// Since when.
    pub taken: BTreeMap<Shard, Time>,
    /// Workers that may hold something of a shard and have not told.
    pub awaited: BTreeMap<Shard, BTreeSet<usize>>,
    /// Workers that have told what they hold of a shard; only they get its orders.
    pub told: BTreeSet<(usize, Shard)>,
    /// Shards of which a fresh link has not told yet; the worker is given nothing before that.
    pub untold: BTreeMap<LinkId, BTreeSet<Shard>>,
    /// Functions that it believes to own.
    pub hosts: BTreeMap<usize, Hosted>,
    /// Functions of containers.
    pub routes: BTreeMap<ContainerId, usize>,
    /// Orders that wait until it is sure of its lease.
    pub held: Vec<(LinkId, Order)>,
    /// When links of workers broke that have not joined again.
    pub parted: BTreeMap<usize, Time>,
}

impl Scheduler {
    /// A process that does not run yet.
    pub fn new(number: usize) -> Self {
        Self {
            name: Arc::from(format!("scheduler-{number}")),
            life: 0,
            runs: false,
            leaves: false,
            stopped_until: None,
            cut_off_until: Time(0),
            slow_until: Time(0),
            sure_until: Time(0),
            autoscaler: Autoscaler::new(Epoch(0)),
            shards: BTreeMap::new(),
            taken: BTreeMap::new(),
            awaited: BTreeMap::new(),
            told: BTreeSet::new(),
            untold: BTreeMap::new(),
            hosts: BTreeMap::new(),
            routes: BTreeMap::new(),
            held: Vec::new(),
            parted: BTreeMap::new(),
        }
    }
}

impl World {
    /// A scheduler's process starts.
    pub(super) fn start(&mut self, s: usize) -> Result<(), String> {
        if self.schedulers[s].runs {
            return Ok(());
        }
        self.note(&format!("scheduler {s} starts"));
        let (life, cut_off_until) = (self.schedulers[s].life + 1, self.schedulers[s].cut_off_until);
        let epoch = self.keys.epoch();
        let autoscaler = Autoscaler::new(epoch);
        #[cfg(feature = "mutants")]
        let autoscaler = {
            let mut autoscaler = autoscaler;
            autoscaler.plant(self.plan.mutant);
            autoscaler
        };
        self.schedulers[s] = Scheduler { life, runs: true, cut_off_until, autoscaler, ..Scheduler::new(s) };
        for w in 0..self.workers.len() {
            let at = self.after(1_000, 400_000);
            let life = self.workers[w].life;
            self.plan(at, Action::Join { worker: w, life, scheduler: s });
        }
        self.look(s)
    }

    /// One look of a scheduler's keeper, and the next one planned.
    pub(super) fn look(&mut self, s: usize) -> Result<(), String> {
        if !self.schedulers[s].runs {
            return Ok(());
        }
        if !self.is_clustered() {
            // The embedded store is one process's own: what it holds is its own for as long as it lives.
            self.keys.leases.insert(s, Lease { life: self.schedulers[s].life, until: Time(u64::MAX) });
            self.schedulers[s].sure_until = Time(u64::MAX);
            return if self.schedulers[s].shards.is_empty() { self.take(s, Shard(0)) } else { Ok(()) };
        }
        if self.schedulers[s].cut_off_until <= self.now {
            self.renew(s)?;
            self.release_held(s);
            self.follow(s)?;
            self.share(s)?;
        }
        if self.schedulers[s].runs {
            let (at, life) = (self.now.plus_ms(LOOK_MS), self.schedulers[s].life);
            self.plan(at, Action::Look { scheduler: s, life });
        }
        Ok(())
    }

    /// Keeps the lease, or notices that it is gone: then a new life begins (RELIABILITY §3.3).
    fn renew(&mut self, s: usize) -> Result<(), String> {
        let life = self.schedulers[s].life;
        let until = self.now.plus_ms(LEASE_MS);
        let ours = self.keys.leases.get(&s).filter(|lease| lease.life == life).is_some();
        let fresh = self.schedulers[s].sure_until == Time(0);
        if !ours && !fresh {
            self.note(&format!("scheduler {s} has lost its lease"));
            self.drop_all(s);
            let scheduler = &mut self.schedulers[s];
            scheduler.life += 1;
            scheduler.sure_until = Time(0);
            let life = scheduler.life;
            // Orders that waited in links are of the life that is over: they end with the links.
            for link in self.links_of(s) {
                self.break_link(link)?;
            }
            let parted: Vec<usize> = self.schedulers[s].parted.keys().copied().collect();
            for w in parted {
                let (at, parted) = (self.now.plus_ms(super::links::LOST_MS), self.now);
                self.schedulers[s].parted.insert(w, parted);
                self.plan(at, Action::Lose { worker: w, scheduler: s, life, parted });
            }
        }
        let life = self.schedulers[s].life;
        // A name has one bearer: the one before must be gone.
        if self.keys.leases.get(&s).is_some_and(|lease| lease.life != life) {
            return Ok(());
        }
        self.keys.leases.insert(s, Lease { life, until });
        if !self.schedulers[s].leaves {
            self.keys.members.insert(s, life);
        }
        self.schedulers[s].sure_until = self.now.plus_ms(LEASE_MS / 4 * 3);
        let at = self.after(until.since_us(self.now), until.since_us(self.now) + 500_000);
        self.plan(at, Action::Expire { scheduler: s });
        Ok(())
    }

    /// A lease that nobody renewed is gone, and everything that hangs on it.
    pub(super) fn expire(&mut self, s: usize) {
        if self.keys.leases.get(&s).is_some_and(|lease| lease.until <= self.now) {
            self.note(&format!("the lease of scheduler {s} ends"));
            self.keys.revoke(s);
        }
    }

    /// One step towards what should be.
    fn follow(&mut self, s: usize) -> Result<(), String> {
        let life = self.schedulers[s].life;
        let lost: Vec<Shard> =
            self.schedulers[s].shards.iter().filter(|(x, e)| !self.keys.holds(**x, **e)).map(|(x, _)| *x).collect();
        for shard in lost {
            self.drop_shard(s, shard);
        }
        let name = |s: &usize| self.schedulers[*s].name.clone();
        let members: BTreeSet<Member> = self.keys.members.keys().map(name).collect();
        let owned: BTreeMap<Shard, Member> = self.keys.owners.iter().map(|(x, (o, _))| (*x, name(o))).collect();
        let scheduler = &self.schedulers[s];
        let mine: BTreeSet<Shard> = scheduler.shards.keys().copied().collect();
        if self.keys.leases.get(&s).is_none_or(|lease| lease.life != life) {
            return Ok(());
        }
        if scheduler.leaves {
            mine.iter().for_each(|shard| self.give(s, *shard));
            if self.schedulers[s].hosts.is_empty() {
                self.note(&format!("scheduler {s} ends"));
                self.keys.revoke(s);
                self.end_process(s)?;
            }
            return Ok(());
        }
        let moves = ownership::moves(&scheduler.name, &members, &owned, &mine, self.keys.shards);
        moves.give.into_iter().for_each(|shard| self.give(s, shard));
        moves.take.into_iter().try_for_each(|shard| self.take(s, shard))
    }

    /// Tells the others what namespaces hold and lack here, and the autoscaler what the others told.
    fn share(&mut self, s: usize) -> Result<(), String> {
        let life = self.schedulers[s].life;
        if self.keys.leases.get(&s).is_some_and(|lease| lease.life == life) {
            self.keys.spaces.insert(s, self.schedulers[s].autoscaler.summary());
        }
        let others = self.keys.spaces.iter().filter(|(other, _)| **other != s);
        let told = others.map(|(other, summary)| (self.schedulers[*other].name.clone(), summary.clone())).collect();
        let (me, now) = (self.schedulers[s].name.clone(), self.now);
        self.tell_autoscaler(s, autoscaler::Event::Elsewhere { me, now, told })
    }

    /// Takes a shard, reads what its functions have in the store, and asks the workers what they hold.
    fn take(&mut self, s: usize, shard: Shard) -> Result<(), String> {
        let life = self.schedulers[s].life;
        if self.keys.full_until > self.now {
            return Ok(());
        }
        let Some(epoch) = self.keys.acquire(s, life, shard) else { return Ok(()) };
        self.note(&format!("scheduler {s} owns shard {shard:?} from {epoch:?}"));
        self.schedulers[s].shards.insert(shard, epoch);
        self.schedulers[s].taken.insert(shard, self.now);
        // A worker that is away might hold something too.
        self.schedulers[s].awaited.insert(shard, (0..self.workers.len()).collect());
        for f in (0..self.functions.len()).filter(|f| self.functions[*f].shard == shard).collect::<Vec<_>>() {
            let mut out = Output::default();
            let (limits, subject) = (self.limits.clone(), &self.functions[f]);
            let core = match subject.durable.recovery(&subject.key) {
                Some(recovery) => Function::recover(recovery, epoch, limits, self.now, &mut out),
                None => {
                    // Its deployment is not durable: whoever deployed it heard no answer and does it again.
                    let spec = (subject.spec.clone(), Revision(0));
                    let deployed = Function::deploy(subject.key.clone(), epoch, limits, self.now, spec, &mut out);
                    deployed.map_err(|refusal| refusal.to_string())?
                }
            };
            core.check()?;
            let generation = self.next();
            let host = Hosted::new(core, shard, epoch, generation);
            self.schedulers[s].hosts.insert(f, host);
            self.perform(At { scheduler: s, function: f, generation }, out)?;
        }
        let links: Vec<LinkId> = self.links_of(s);
        for link in links {
            self.claim(link, shard, epoch);
        }
        let settle = self.now.plus_ms(self.limits.adopt_grace_ms);
        self.plan(settle, Action::Settle { scheduler: s, shard, epoch });
        if self.plan.mutant == super::shell_mutant::SETTLES_UNTOLD {
            return self.settle(s, shard, epoch);
        }
        Ok(())
    }

    /// Says to a worker that the shard is owned here.
    pub(super) fn claim(&mut self, link: LinkId, shard: Shard, epoch: Epoch) {
        self.send_down(link, Order::Own { shard, shards: self.keys.shards, epoch });
    }

    /// Recovered functions may give out work.
    pub(super) fn settle(&mut self, s: usize, shard: Shard, epoch: Epoch) -> Result<(), String> {
        let scheduler = &mut self.schedulers[s];
        if scheduler.shards.get(&shard) != Some(&epoch) || scheduler.awaited.remove(&shard).is_none() {
            return Ok(());
        }
        self.hosts_of(s, shard).into_iter().try_for_each(|at| self.step_function(at, Event::Settled))
    }

    /// Where a shard's functions live at a scheduler.
    pub(super) fn hosts_of(&self, s: usize, shard: Shard) -> Vec<At> {
        let of = self.schedulers[s].hosts.iter().filter(|(_, host)| host.shard == shard);
        of.map(|(f, host)| At { scheduler: s, function: *f, generation: host.generation }).collect()
    }

    /// Gives a shard up in order: nothing new begins, what is under way is written; then it is free.
    fn give(&mut self, s: usize, shard: Shard) {
        for at in self.hosts_of(s, shard) {
            let Some(host) = self.host(at) else { continue };
            if host.core.take().is_some() {
                self.tell_left(at);
            }
        }
        self.release_if_written(s, shard);
    }

    /// A shard that is given up is free as soon as everything of it is written.
    pub(super) fn release_if_written(&mut self, s: usize, shard: Shard) {
        let waits = |host: &&Hosted| host.shard == shard && (host.core.is_some() || host.under_way.is_some());
        if self.schedulers[s].hosts.values().any(|host| waits(&host)) {
            return;
        }
        let Some(epoch) = self.schedulers[s].shards.get(&shard).copied() else { return };
        self.note(&format!("scheduler {s} gives up shard {shard:?}"));
        if self.keys.holds(shard, epoch) {
            self.keys.owners.remove(&shard);
        }
        self.drop_shard(s, shard);
    }

    /// The shard is another's: everything of it is forgotten.
    pub(super) fn drop_shard(&mut self, s: usize, shard: Shard) {
        for at in self.hosts_of(s, shard) {
            if self.host(at).is_some_and(|host| host.core.is_some()) {
                self.tell_left(at);
            }
            self.schedulers[s].hosts.remove(&at.function);
            self.forsake_clients(at);
        }
        let scheduler = &mut self.schedulers[s];
        scheduler.shards.remove(&shard);
        scheduler.awaited.remove(&shard);
        scheduler.told.retain(|(_, of)| *of != shard);
        let mut complete = Vec::new();
        for (link, untold) in &mut scheduler.untold {
            if untold.remove(&shard) && untold.is_empty() {
                complete.push(*link);
            }
        }
        for link in complete {
            self.told_all(link);
        }
    }

    fn drop_all(&mut self, s: usize) {
        let shards: Vec<Shard> = self.schedulers[s].shards.keys().copied().collect();
        shards.into_iter().for_each(|shard| self.drop_shard(s, shard));
    }

    /// The process is gone, and everything that was not durable.
    pub(super) fn end_process(&mut self, s: usize) -> Result<(), String> {
        self.drop_all(s);
        for link in self.links_of(s) {
            self.break_link(link)?;
        }
        let scheduler = &mut self.schedulers[s];
        scheduler.life += 1;
        scheduler.runs = false;
        scheduler.stopped_until = None;
        if !self.is_clustered() {
            self.keys.revoke(s);
        }
        let at = if self.is_clustered() { self.after(500_000, 6_000_000) } else { self.now };
        self.plan(at, Action::Start { scheduler: s });
        Ok(())
    }
}
