//! What other schedulers of a cluster hold and lack. Shares and quotas count a namespace's containers everywhere; room that a
//! poorer namespace elsewhere lacks is left to it; and where nothing is free, the one scheduler that can best make room does.

use super::{
    Autoscaler, Effect, Want, Worker,
    share::{Class, Policy, share},
    yielding::Need,
};
use crate::ownership::Member;
use capstan_common::{
    id::{FunctionKey, WorkerId},
    resource::Amount,
    time::Time,
    worker::WorkerState,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// How long room is left to a scheduler that does not take it.
const LEFT_MS: u64 = 5_000;
/// Workers on which one question makes room.
const WORKERS: usize = 32;

/// What a namespace lacks at one scheduler, where every worker is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// What each container takes.
    pub amount: Amount,
    /// How many.
    pub count: u32,
}

/// What one scheduler tells the others of a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    /// Its containers.
    pub held: u32,
    /// What they take.
    pub used: Amount,
    /// Idle ones above the minimum.
    pub spare: u32,
    /// All above the minimum that do not leave already.
    pub above: u32,
    /// What it lacks, and nobody at this scheduler can give.
    pub lacks: Option<Lack>,
}

/// What one scheduler tells the others, by namespace.
pub type Summary = BTreeMap<Arc<str>, Told>;

/// Room that another scheduler lacks.
#[derive(Debug, Clone)]
struct Foreign {
    member: Member,
    namespace: Arc<str>,
    lack: Lack,
    /// Since when there is room that is left to it, by what was last told.
    left_since: Option<Time>,
}

/// What all others told last.
#[derive(Debug, Clone, Default)]
pub(super) struct Elsewhere {
    me: Option<Member>,
    now: Time,
    told: BTreeMap<Member, Summary>,
    sums: BTreeMap<Arc<str>, (u32, Amount)>,
    lacks: Vec<Foreign>,
}

impl Elsewhere {
    /// A namespace's containers at other schedulers, and what they take.
    pub fn of(&self, namespace: &str) -> (u32, Amount) {
        self.sums.get(namespace).copied().unwrap_or_default()
    }

    /// Namespaces with containers at other schedulers.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.sums.keys()
    }

    /// Whether there are other schedulers, or were.
    pub fn is_told(&self) -> bool {
        self.me.is_some()
    }

    /// Whether what is told is news.
    fn see(&mut self, me: Member, now: Time, told: BTreeMap<Member, Summary>) -> bool {
        self.now = now;
        if self.me.as_ref() == Some(&me) && self.told == told {
            return !self.lacks.is_empty();
        }
        let before: Vec<Foreign> = std::mem::take(&mut self.lacks);
        self.sums.clear();
        for (member, summary) in &told {
            for (namespace, told) in summary {
                let sum = self.sums.entry(namespace.clone()).or_default();
                *sum = (sum.0 + told.held, sum.1.plus(told.used));
                let Some(lack) = told.lacks else { continue };
                let same = |f: &&Foreign| f.member == *member && f.namespace == *namespace;
                let held =
                    |all: &BTreeMap<Member, Summary>| all.get(member).and_then(|s| s.get(namespace)).map(|t| t.held);
                // Whoever takes what is left to it is left more.
                let stands = held(&self.told) == Some(told.held);
                let left_since = before.iter().find(same).and_then(|f| f.left_since).filter(|_| stands);
                let (member, namespace) = (member.clone(), namespace.clone());
                self.lacks.push(Foreign { member, namespace, lack, left_since });
            }
        }
        (self.me, self.told) = (Some(me), told);
        true
    }
}

/// Room that is left to others in one round, and how their shares would grow by it.
pub(super) struct Left {
    open: Vec<usize>,
    gained: BTreeMap<Arc<str>, Amount>,
    /// By worker.
    pub amounts: BTreeMap<WorkerId, Amount>,
    counts: BTreeMap<usize, u32>,
}

impl Autoscaler {
    /// Other schedulers have told. Answers whether that can change who gets what here.
    pub(super) fn elsewhere(
        &mut self,
        me: Member,
        now: Time,
        told: BTreeMap<Member, Summary>,
        out: &mut Vec<Effect>,
    ) -> bool {
        let news = self.elsewhere.see(me, now, told);
        if news {
            self.make_room_elsewhere(out);
        }
        news
    }

    /// What others are told of this scheduler.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::new();
        for (name, space) in self.spaces.iter().filter(|(_, space)| space.held > 0) {
            let told = Told { held: space.held, used: space.used, ..Told::default() };
            summary.insert(name.clone(), told);
        }
        for (function, want) in &self.wants {
            let above = want.above();
            if above > 0 {
                let told = summary.entry(function.namespace.clone()).or_default();
                told.above += above;
                told.spare += want.demand.spare.min(above);
            }
        }
        for (namespace, lack) in &self.lacking {
            summary.entry(namespace.clone()).or_default().lacks = Some(*lack);
        }
        summary
    }

    /// A namespace's containers everywhere, and what they take.
    pub(super) fn everywhere(&self, namespace: &str) -> (u32, Amount) {
        let (held, used) = self.spaces.get(namespace).map_or((0, Amount::default()), |space| (space.held, space.used));
        let (more, taken) = self.elsewhere.of(namespace);
        (held + more, used.plus(taken))
    }

    fn weight(&self, namespace: &str) -> u32 {
        self.spaces.get(namespace).map_or(Policy::default().weight, |space| space.policy.weight)
    }

    /// What the namespace's share would be with `gained` more.
    pub(super) fn share_with(&self, namespace: &str, gained: Amount) -> u64 {
        share(self.everywhere(namespace).1.plus(gained), self.total, self.weight(namespace))
    }

    /// What the namespace's share would be with `lost` less.
    pub(super) fn share_without(&self, namespace: &str, lost: Amount) -> u64 {
        share(self.everywhere(namespace).1.minus(lost), self.total, self.weight(namespace))
    }

    /// Nothing is left to anybody yet.
    pub(super) fn leave_room(&self) -> Left {
        let open = (0..self.elsewhere.lacks.len()).collect();
        Left { open, gained: BTreeMap::new(), amounts: BTreeMap::new(), counts: BTreeMap::new() }
    }

    /// Leaves room for one container to a namespace elsewhere that has less than `own`; whether there was one.
    pub(super) fn left_to_another(
        &mut self,
        own: u64,
        left: &mut Left,
        place: impl FnOnce(&Self, &Left, Amount) -> Option<WorkerId>,
    ) -> bool {
        let share_of = |n: usize| {
            let space = &self.elsewhere.lacks[n].namespace;
            self.share_with(space, left.gained.get(space).copied().unwrap_or_default())
        };
        let Some((share, n)) = left.open.iter().map(|n| (share_of(*n), *n)).min() else { return false };
        if share >= own {
            return false;
        }
        let (amount, count) = (self.elsewhere.lacks[n].lack.amount, self.elsewhere.lacks[n].lack.count);
        let now = self.elsewhere.now;
        let waited = self.elsewhere.lacks[n].left_since.is_some_and(|since| now.since_ms(since) > LEFT_MS);
        let worker = (!waited).then(|| place(self, left, amount)).flatten();
        let taken = left.counts.entry(n).or_default();
        match worker {
            Some(worker) if *taken < count => {
                *taken += 1;
                let of_worker = left.amounts.entry(worker).or_default();
                *of_worker = of_worker.plus(amount);
                let foreign = &mut self.elsewhere.lacks[n];
                foreign.left_since.get_or_insert(now);
                let gained = left.gained.entry(foreign.namespace.clone()).or_default();
                *gained = gained.plus(amount);
            }
            _ => left.open.retain(|open| *open != n),
        }
        true
    }

    /// Makes room for what others lack, where this scheduler is the one to do it.
    fn make_room_elsewhere(&mut self, out: &mut Vec<Effect>) {
        for n in 0..self.elsewhere.lacks.len() {
            let foreign = self.elsewhere.lacks[n].clone();
            if !self.is_to_make_room(&foreign) {
                continue;
            }
            let one = foreign.lack.amount;
            let fits = |w: &Worker| w.state == WorkerState::Ready && w.capacity.covers(one);
            let workers = self.workers.iter().filter(|(_, w)| fits(w)).take(WORKERS);
            let workers: Vec<(WorkerId, u32)> = workers.map(|(id, w)| (id.clone(), fitting(w.capacity, one))).collect();
            let mut lacks = foreign.lack.count;
            for (worker, most) in workers {
                // As many at once as the worker can hold and fairness allows.
                for count in (1..=lacks.min(most)).rev() {
                    let need = Need::elsewhere(foreign.namespace.clone(), one, count);
                    let Some(asks) = self.plan(&need, &worker) else { continue };
                    self.ask(asks, &worker, out);
                    lacks -= count;
                    break;
                }
            }
        }
    }

    /// Everybody sees the same and computes the same: first the one with most idle containers to spare, then the one that holds
    /// most of the richest namespace. The one that lacks has asked its own functions already.
    fn is_to_make_room(&self, foreign: &Foreign) -> bool {
        let Some(me) = &self.elsewhere.me else { return false };
        let mine = self.summary();
        let others = self.elsewhere.told.iter().filter(|(member, _)| **member != foreign.member);
        let all: Vec<(&Member, &Summary)> = others.chain(std::iter::once((me, &mine))).collect();
        let spare = |summary: &Summary| summary.values().map(|told| told.spare).sum::<u32>();
        let idle = all.iter().map(|(member, summary)| (spare(summary), *member)).max();
        if let Some((_, member)) = idle.filter(|(spare, _)| *spare > 0) {
            return member == me;
        }
        let poor = self.share_with(&foreign.namespace, Amount::default());
        let rich = all.iter().flat_map(|(member, summary)| {
            let gives = summary.iter().filter(|(name, told)| told.above > 0 && **name != foreign.namespace);
            gives.map(|(name, told)| (self.share_with(name, Amount::default()), told.above, *member))
        });
        rich.filter(|(share, _, _)| *share > poor).max().is_some_and(|(_, _, member)| member == me)
    }

    /// Remembers what a namespace lacks that nobody here can give.
    pub(super) fn lacks(&mut self, function: &FunctionKey, class: &Class) {
        let lacking = self.hungry.of(&function.namespace, class);
        let count = lacking.iter().filter_map(|key| self.wants.get(key)).map(Want::outstanding).sum();
        let amount = self.wants[function].demand.amount;
        self.lacking.insert(function.namespace.clone(), Lack { amount, count });
    }
}

/// How many containers of `one` a worker can hold.
fn fitting(capacity: Amount, one: Amount) -> u32 {
    let parts = |capacity: u64, one: u64| capacity.checked_div(one).unwrap_or(u64::MAX);
    let most = parts(capacity.cpu_milli, one.cpu_milli).min(parts(capacity.memory_mib, one.memory_mib));
    u32::try_from(most).unwrap_or(u32::MAX)
}
