//! What other schedulers of a cluster hold and lack. Shares and quotas count a namespace's containers everywhere; room that a
//! poorer namespace elsewhere lacks is left to it; and where nothing is free, one scheduler after the other tries to make room.

use super::{
    Autoscaler, Effect, Want, add,
    held::Sum,
    nodes::Wanted,
    of,
    place::{Asked, Placed},
    share::{Class, Policy, share},
    yielding::{Given, Need},
};
use crate::ownership::Member;
use capstan_common::{
    gpu::GpuRequest,
    id::{FunctionKey, WorkerId},
    isolation::Needs,
    resource::Amount,
    time::Time,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// How long room is left to a scheduler that does not take it; for as long afterwards it is not.
const LEFT_MS: u64 = 5_000;
/// How long one scheduler tries to make room before the next one does too.
const TURN_MS: u64 = 1_000;
/// Workers on which one turn makes room.
const WORKERS: usize = 32;

/// What a namespace lacks at one scheduler, where every worker is full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// What each container takes, of GPUs the fewest.
    pub amount: Amount,
    /// GPUs by preference.
    #[serde(default)]
    pub gpus: Vec<GpuRequest>,
    /// What it needs of a worker's isolation.
    #[serde(default)]
    pub needs: Needs,
    /// How many.
    pub count: u32,
}

impl Lack {
    fn asked(&self) -> Asked<'_> {
        Asked { amount: self.amount, gpus: &self.gpus, needs: self.needs }
    }
}

/// What one scheduler tells the others of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What it lacks, beyond what is being made at this scheduler.
    pub lacks: Option<Lack>,
    /// Containers that it has and that it wants, by what each takes.
    pub wanted: Vec<Wanted>,
}

/// What one scheduler tells the others, by namespace.
pub type Summary = BTreeMap<Arc<str>, Told>;

/// Room that another scheduler lacks.
#[derive(Debug, Clone)]
struct Foreign {
    member: Member,
    namespace: Arc<str>,
    lack: Lack,
    /// Since when it lacks without getting any.
    since: Time,
    /// Since when there is room that is left to it.
    left_since: Option<Time>,
}

impl Foreign {
    /// Whether room was left to it for long enough, and it took none.
    fn has_waited(&self, now: Time) -> bool {
        self.left_since.is_some_and(|since| now.since_ms(since) > LEFT_MS)
    }
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

    /// Whether any other scheduler has idle containers to spare.
    pub fn has_spare(&self) -> bool {
        self.told.values().flat_map(BTreeMap::values).any(|told| told.spare > 0)
    }

    /// Idle containers that a namespace could spare at other schedulers.
    pub fn spare(&self, namespace: &str) -> u64 {
        self.told.values().filter_map(|summary| summary.get(namespace)).map(|told| u64::from(told.spare)).sum()
    }

    /// Containers that other schedulers have and want.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> {
        self.told.values().flat_map(BTreeMap::values).flat_map(|told| told.wanted.iter().copied())
    }

    /// Whether what is told is news, or asks for something.
    fn see(&mut self, me: Member, now: Time, told: BTreeMap<Member, Summary>) -> bool {
        self.now = now;
        let again = |since: Time| now.since_ms(since) > 2 * LEFT_MS;
        for foreign in &mut self.lacks {
            foreign.left_since = foreign.left_since.filter(|since| !again(*since));
        }
        if self.me.as_ref() == Some(&me) && self.told == told {
            return !self.lacks.is_empty();
        }
        let before: Vec<Foreign> = std::mem::take(&mut self.lacks);
        self.sums.clear();
        for (member, summary) in &told {
            for (namespace, told) in summary {
                let sum = self.sums.entry(namespace.clone()).or_default();
                *sum = (sum.0 + told.held, sum.1.plus(told.used));
                let Some(lack) = told.lacks.clone() else { continue };
                let same = |f: &&Foreign| f.member == *member && f.namespace == *namespace;
                let held_before = self.told.get(member).and_then(|s| s.get(namespace)).map_or(0, |t| t.held);
                // Whoever takes what is left to it is left more.
                let stands = before.iter().find(same).filter(|_| told.held <= held_before);
                let since = stands.map_or(now, |f| f.since);
                let left_since = stands.and_then(|f| f.left_since);
                let (member, namespace) = (member.clone(), namespace.clone());
                self.lacks.push(Foreign { member, namespace, lack, since, left_since });
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
    amounts: BTreeMap<WorkerId, Amount>,
    counts: BTreeMap<usize, u32>,
}

impl Left {
    /// What is left to others on a worker.
    pub fn on(&self, worker: &WorkerId) -> Amount {
        of(&self.amounts, worker)
    }
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
        if !self.elsewhere.lacks.is_empty() {
            self.make_room_elsewhere(out);
        }
        news
    }

    /// What others are told of this scheduler.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::new();
        for (name, Sum { count, used }) in self.held.namespaces() {
            summary.insert(name.clone(), Told { held: count, used, ..Told::default() });
        }
        for (function, want) in &self.wants {
            let above = want.above(self.held.of(function));
            if above > 0 {
                let told = summary.entry(function.namespace.clone()).or_default();
                told.above += above;
                told.spare += want.demand.spare.min(above);
            }
        }
        for (namespace, (lack, _)) in &self.lacking {
            summary.entry(namespace.clone()).or_default().lacks = Some(lack.clone());
        }
        for (namespace, wanted) in self.wanted_by_each() {
            summary.entry(namespace).or_default().wanted = wanted;
        }
        summary
    }

    /// A namespace's containers everywhere, and what they take.
    pub(super) fn everywhere(&self, namespace: &str) -> (u32, Amount) {
        let Sum { count, used } = self.held.of_namespace(namespace);
        let (more, taken) = self.elsewhere.of(namespace);
        (count + more, used.plus(taken))
    }

    fn weight(&self, namespace: &str) -> u32 {
        self.policies.get(namespace).map_or(Policy::default().weight, |policy| policy.weight)
    }

    /// What the namespace's share would be with `gained` more and `lost` less.
    pub(super) fn share_with(&self, namespace: &str, gained: Amount, lost: Amount) -> u64 {
        share(self.everywhere(namespace).1.plus(gained).minus(lost), self.total, self.weight(namespace))
    }

    /// Nothing is left to anybody yet.
    pub(super) fn leave_room(&self) -> Left {
        let open = (0..self.elsewhere.lacks.len()).collect();
        Left { open, gained: BTreeMap::new(), amounts: BTreeMap::new(), counts: BTreeMap::new() }
    }

    /// Leaves room for one container to a namespace elsewhere that has less than `own`; whether there was one to look at.
    pub(super) fn left_to_another(
        &mut self,
        own: u64,
        left: &mut Left,
        place: impl FnOnce(&Self, &Left, Asked) -> Option<Placed>,
    ) -> bool {
        let share_of = |n: usize| {
            let space = &self.elsewhere.lacks[n].namespace;
            self.share_with(space, of(&left.gained, space), Amount::default())
        };
        let Some((share, n)) = left.open.iter().map(|n| (share_of(*n), *n)).min() else { return false };
        if share >= own {
            return false;
        }
        let (foreign, now) = (&self.elsewhere.lacks[n], self.elsewhere.now);
        let taken = left.counts.get(&n).copied().unwrap_or(0);
        let takes = taken < foreign.lack.count && !foreign.has_waited(now);
        match takes.then(|| place(self, left, foreign.lack.asked())).flatten() {
            Some(Placed { worker, amount, .. }) => {
                left.counts.insert(n, taken + 1);
                add(&mut left.amounts, &worker, amount);
                let foreign = &mut self.elsewhere.lacks[n];
                foreign.left_since.get_or_insert(now);
                add(&mut left.gained, &foreign.namespace, amount);
            }
            None => left.open.retain(|open| *open != n),
        }
        true
    }

    /// Ends a round: to whom nothing was left does not wait.
    pub(super) fn close_round(&mut self, left: &Left) {
        let now = self.elsewhere.now;
        for (n, foreign) in self.elsewhere.lacks.iter_mut().enumerate() {
            if !left.counts.contains_key(&n) && !foreign.has_waited(now) {
                foreign.left_since = None;
            }
        }
    }

    /// Makes room for what others lack, where it is this scheduler's turn.
    fn make_room_elsewhere(&mut self, out: &mut Vec<Effect>) {
        let (mine, now) = (self.summary(), self.elsewhere.now);
        let mut given = self.leaving();
        for n in 0..self.elsewhere.lacks.len() {
            let foreign = self.elsewhere.lacks[n].clone();
            let turn = now.since_ms(foreign.since) / TURN_MS;
            if foreign.has_waited(now) || !self.is_to_make_room(&foreign, &mine, turn) {
                continue;
            }
            let each = |id: &WorkerId| {
                let amounts = self.could_hold(id, foreign.lack.asked());
                amounts.into_iter().map(|amount| (id.clone(), amount)).collect::<Vec<_>>()
            };
            let holders: Vec<(WorkerId, Amount)> = self.held.workers().flat_map(each).collect();
            let first = (turn as usize).wrapping_mul(WORKERS) % holders.len().max(1);
            let mut lacks = foreign.lack.count;
            for (worker, one) in holders.iter().cycle().skip(first).take(WORKERS.min(holders.len())) {
                lacks -= self.make_room_on(worker, &foreign.namespace, (*one, lacks), &mut given, out);
            }
        }
    }

    /// Makes room on one worker, for as many as it can hold and fairness allows: the most that can be planned is found by halving.
    /// Answers for how many.
    fn make_room_on(
        &mut self,
        worker: &WorkerId,
        namespace: &Arc<str>,
        (one, lacks): (Amount, u32),
        given: &mut Given,
        out: &mut Vec<Effect>,
    ) -> u32 {
        let most = self.workers.get(worker).map_or(0, |host| host.capacity.holds(one));
        let (mut low, mut high, mut planned) = (0, lacks.min(most), None);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let need = Need::elsewhere(namespace.clone(), one, middle);
            let mut after = given.clone();
            match self.plan(&need, worker, &mut after, true) {
                Some(asks) => (low, planned) = (middle, Some((asks, after))),
                None => high = middle - 1,
            }
        }
        if let Some((asks, after)) = planned {
            self.ask(asks, Some(worker), out);
            *given = after;
        }
        low
    }

    /// Whose turn it is, most able first: who has idle containers to spare, by how many, then who holds of namespaces that are
    /// richer. All see nearly the same, so mostly one tries; who cannot is followed by the next. The one that lacks has asked its
    /// own functions already.
    fn is_to_make_room(&self, foreign: &Foreign, mine: &Summary, turn: u64) -> bool {
        let Some(me) = &self.elsewhere.me else { return false };
        let others = self.elsewhere.told.iter().filter(|(member, _)| **member != foreign.member);
        let poor = self.share_of(&foreign.namespace);
        let richest = |summary: &Summary| {
            let gives = summary.iter().filter(|(name, told)| told.above > 0 && **name != foreign.namespace);
            gives.map(|(name, _)| self.share_of(name)).max().unwrap_or(0)
        };
        let rank = |(member, summary): (&Member, &Summary)| {
            let spare = summary.values().map(|told| told.spare).sum::<u32>();
            let rich = Some(richest(summary)).filter(|share| *share > poor);
            (spare > 0 || rich.is_some()).then(|| (spare, rich, member.clone()))
        };
        let mut able: Vec<_> = others.chain(std::iter::once((me, mine))).filter_map(rank).collect();
        able.sort_by(|a, b| b.cmp(a));
        able.get(turn as usize % able.len().max(1)).is_some_and(|(_, _, member)| member == me)
    }

    /// Remembers what a namespace lacks beyond `coming`, which nobody here can give; no more than its quota allows. The poorest
    /// comes first, and is what others hear of.
    pub(super) fn lacks(&mut self, function: &FunctionKey, (class, asked): (&Class, Asked), coming: u32) {
        let lacking = self.hungry.of(&function.namespace, class);
        let count: u32 = lacking.iter().filter_map(|key| self.wants.get(key)).map(Want::outstanding).sum();
        // What a spec of an earlier version asks for may be nothing that others can read.
        let readable = |gpu: &&GpuRequest| gpu.to_string().parse::<GpuRequest>().is_ok();
        let (amount, gpus) = (asked.amount, asked.gpus.iter().filter(readable).cloned().collect());
        let (held, used) = self.everywhere(&function.namespace);
        let quota = self.policies.get(&function.namespace).map(|policy| policy.quota.room(held, used, amount));
        let count = count.min(quota.unwrap_or(u32::MAX)).saturating_sub(coming);
        let since = self.lacked.get(&function.namespace).copied().unwrap_or(self.elsewhere.now);
        if count > 0 {
            self.lacking
                .entry(function.namespace.clone())
                .or_insert((Lack { amount, gpus, needs: asked.needs, count }, since));
        }
    }

    /// Whether the namespace has lacked for so long that idle containers of others will hardly come.
    pub(super) fn has_lacked_long(&self, namespace: &str) -> bool {
        let long = |since: &Time| self.elsewhere.now.since_ms(*since) > 3 * TURN_MS;
        self.lacked.get(namespace).is_some_and(long)
    }
}
