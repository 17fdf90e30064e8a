//! Who makes room where everything is full: idle containers above their pool's minimum at once, busy ones of whoever holds
//! more than the one that waits. Those finish what they have and take nothing new: scaling never kills work.

use super::{Autoscaler, Effect, add, of, place::Asked, share::share};
use capstan_common::{
    id::{FunctionKey, WorkerId},
    resource::Amount,
};
use std::{collections::BTreeMap, sync::Arc};

/// Workers that are looked at for one that can make room.
const LOOKS: usize = 32;

/// Who waits for room.
pub(super) struct Need {
    namespace: Arc<str>,
    /// One of ours; none, if another scheduler's.
    function: Option<FunctionKey>,
    /// What all of it takes.
    amount: Amount,
}

impl Need {
    /// So many containers of a namespace at another scheduler.
    pub fn elsewhere(namespace: Arc<str>, one: Amount, count: u32) -> Self {
        Self { namespace, function: None, amount: one.times(count) }
    }
}

/// What namespaces have been promised, and what they were asked for or give up already, by namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    gained: BTreeMap<Arc<str>, Amount>,
    lost: BTreeMap<Arc<str>, Amount>,
}

/// One question to a pool.
pub(super) struct Ask {
    victim: FunctionKey,
    count: u32,
    busy: bool,
}

impl Autoscaler {
    /// Asks others to make room for one container of `function`, on `first` or the next worker where they can; answers
    /// which worker is kept for it, and whether room will be made. Nobody is asked in vain: where not all can be freed that is
    /// lacking, nothing is.
    pub(super) fn ask_to_yield(
        &mut self,
        function: &FunctionKey,
        asked: Asked,
        first: WorkerId,
        out: &mut Vec<Effect>,
    ) -> (WorkerId, bool) {
        // Idle containers of other schedulers come before busy ones of this.
        let busy = !self.elsewhere.has_spare() || self.has_lacked_long(&function.namespace);
        let others = self.workers.keys().filter(|id| **id != first && !self.could_hold(id, asked).is_empty());
        let workers = std::iter::once(&first).chain(others.take(LOOKS));
        let each = |id: &WorkerId| self.could_hold(id, asked).into_iter().map(|amount| (id.clone(), amount)).collect();
        let hosts: Vec<(WorkerId, Amount)> = workers.flat_map(|id| -> Vec<_> { each(id) }).collect();
        for (worker, amount) in hosts {
            let need = Need { namespace: function.namespace.clone(), function: Some(function.clone()), amount };
            let Some(asks) = self.plan(&need, &worker, &mut Given::default(), busy) else { continue };
            self.ask(asks, Some(&worker), out);
            return (worker, true);
        }
        (first, false)
    }

    /// Asks idle containers of a namespace that passes its quota, or would with one more container, to leave, wherever they are: for
    /// one more only if that is enough, and nobody leaves in vain. Of other schedulers' idle containers none is asked.
    pub(super) fn make_room_in_quota(&mut self, namespace: &Arc<str>, more: Option<Amount>, out: &mut Vec<Effect>) {
        let first = FunctionKey::new(namespace, "");
        let ours = || self.giving.range(first.clone()..).take_while(|function| function.namespace == *namespace);
        let (Some(policy), Some(_)) = (self.policies.get(namespace), ours().next()) else { return };
        let (held, used) = self.everywhere(namespace);
        let (one, amount) = (u32::from(more.is_some()), more.unwrap_or_default());
        let (mut count, mut lacking) = policy.quota.excess(held + one, used.plus(amount));
        if more.is_some() && amount.gpus == 0 {
            // Who asks for none is not held back by GPUs.
            lacking.gpus = 0;
        }
        let (mut holders, mut spare) = (Vec::new(), 0);
        for (function, want) in ours().filter_map(|function| Some((function, self.wants.get(function)?))) {
            let (leaving, here) = (want.demand.leaving.max(want.asked), self.held.of(function));
            (count, lacking) = (count.saturating_sub(leaving), lacking.minus(want.each(here).times(leaving)));
            spare += want.demand.spare;
            if want.demand.spare > 0 && want.asked == 0 {
                holders.push((share(here.used, self.total, want.demand.weight), function.clone()));
            }
        }
        if more.is_none() {
            // Each scheduler takes its part of a bound that was lowered.
            let all = u64::from(spare) + self.elsewhere.spare(namespace);
            let part = |of: u64| (of * u64::from(spare)).div_ceil(all.max(1));
            count = part(u64::from(count)) as u32;
            lacking = Amount {
                cpu_milli: part(lacking.cpu_milli),
                memory_mib: part(lacking.memory_mib),
                gpus: part(lacking.gpus),
            };
        }
        holders.sort_by(|a, b| b.cmp(a));
        let mut asks = Vec::new();
        for (_, victim) in holders {
            let want = &self.wants[&victim];
            let each = want.each(self.held.of(&victim));
            let gives = needed(lacking, each).max(count).min(want.demand.spare);
            if gives > 0 {
                (count, lacking) = (count.saturating_sub(gives), lacking.minus(each.times(gives)));
                asks.push(Ask { victim, count: gives, busy: false });
            }
        }
        if more.is_none() || (count == 0 && lacking == Amount::default()) {
            self.ask(asks, None, out);
        }
    }

    /// Puts the questions.
    pub(super) fn ask(&mut self, asks: Vec<Ask>, worker: Option<&WorkerId>, out: &mut Vec<Effect>) {
        for Ask { victim, count, busy } in asks {
            if let Some(want) = self.wants.get_mut(&victim) {
                want.asked = count;
                // What it cannot give it is not asked for again until something of it has changed.
                want.declined.extend(worker.cloned());
            }
            out.push(Effect::GiveWay { function: victim, worker: worker.cloned(), count, busy });
        }
    }

    /// Who must be asked so that what is needed fits on the worker; `None` if that is not enough.
    /// `given` grows by what is planned; `busy` says whether containers with work may be asked too.
    pub(super) fn plan(&self, need: &Need, worker: &WorkerId, given: &mut Given, busy: bool) -> Option<Vec<Ask>> {
        let there = self.held.there(worker)?;
        let host = self.workers.get(worker)?;
        let amount = need.amount;
        let others: Vec<FunctionKey> =
            there.keys().filter(|other| Some(*other) != need.function.as_ref()).cloned().collect();
        let mut free = host.free(self.held.on(worker));
        for other in &others {
            let Some(want) = self.wants.get(other) else { continue };
            let leaving = want.demand.leaving.max(want.asked);
            free = free.plus(there[other].each().times(leaving.min(there[other].count)));
        }
        let (victims, mut asks) = (self.ranked(&others), Vec::new());
        for busy in [false, true].into_iter().take(1 + usize::from(busy)) {
            for victim in &victims {
                if free.covers(amount) {
                    break;
                }
                let count = self.could_give(need, (victim, worker), amount.minus(free), given, busy);
                let asked = asks.iter().any(|ask: &Ask| ask.victim == *victim);
                if count > 0 && !asked {
                    let gives = there[victim].each().times(count);
                    free = free.plus(gives);
                    add(&mut given.lost, &victim.namespace, gives);
                    asks.push(Ask { victim: victim.clone(), count, busy });
                }
            }
        }
        add(&mut given.gained, &need.namespace, amount);
        free.covers(amount).then_some(asks)
    }

    /// What namespaces give up already.
    pub(super) fn leaving(&self) -> Given {
        let mut given = Given::default();
        for (function, want) in self.giving.iter().filter_map(|function| Some((function, self.wants.get(function)?))) {
            let each = want.each(self.held.of(function));
            add(&mut given.lost, &function.namespace, each.times(want.demand.leaving));
        }
        given
    }

    /// The largest holders first: by namespace, then by function.
    fn ranked(&self, others: &[FunctionKey]) -> Vec<FunctionKey> {
        let mut ranked: Vec<_> = others
            .iter()
            .filter_map(|key| {
                let want = self.wants.get(key)?;
                let own = share(self.held.of(key).used, self.total, want.demand.weight);
                Some((self.share_of(&key.namespace), own, key.clone()))
            })
            .collect();
        ranked.sort_by(|a, b| b.cmp(a));
        ranked.into_iter().map(|(_, _, key)| key).collect()
    }

    /// How many containers a function could be asked for, at most as many as make up for what is lacking.
    fn could_give(
        &self,
        need: &Need,
        (victim, worker): (&FunctionKey, &WorkerId),
        lacking: Amount,
        given: &Given,
        busy: bool,
    ) -> u32 {
        let Some(want) = self.wants.get(victim).filter(|w| w.asked == 0 && !w.declined.contains(worker)) else {
            return 0;
        };
        let here = self.held.of_there(victim, worker);
        let most = if busy {
            want.above(self.held.of(victim)).min(self.above_fair(need, victim, given))
        } else {
            want.demand.spare
        };
        needed(lacking, here.each()).min(most).min(here.count)
    }

    /// How many containers `victim` holds beyond the point where it would hold no more than the one that waits does: giving
    /// more would only turn the injustice round. Between functions of one namespace at two schedulers nothing is compared.
    fn above_fair(&self, need: &Need, victim: &FunctionKey, given: &Given) -> u32 {
        let (holds, held) = (&self.wants[victim], self.held.of(victim));
        let waits = need.function.as_ref().map(|function| (&self.wants[function], self.held.of(function)));
        let same = need.namespace == victim.namespace;
        let share_after = |gives: u32| {
            let (gained, lost) = (need.amount, holds.each(held).times(gives));
            if same {
                let (waits, has) = waits?;
                let mine = share(has.used.plus(gained), self.total, waits.demand.weight);
                let theirs = share(held.used.minus(lost), self.total, holds.demand.weight);
                return Some((mine, theirs));
            }
            let (before, promised) = (of(&given.lost, &victim.namespace), of(&given.gained, &need.namespace));
            let mine = self.share_with(&need.namespace, gained.plus(promised), of(&given.lost, &need.namespace));
            let theirs = self.share_with(&victim.namespace, of(&given.gained, &victim.namespace), lost.plus(before));
            Some((mine, theirs))
        };
        let fair = |gives: u32| share_after(gives).is_some_and(|(mine, theirs)| theirs >= mine);
        // Both shares fall and rise with `gives`: the last fair number is found by halving.
        let (mut low, mut high) = (0, held.count);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fair(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// How many containers of `one` make up for what is lacking.
fn needed(lacking: Amount, one: Amount) -> u32 {
    let parts = |lacking: u64, one: u64| if lacking == 0 { 0 } else { lacking.div_ceil(one.max(1)) };
    let plain = parts(lacking.cpu_milli, one.cpu_milli).max(parts(lacking.memory_mib, one.memory_mib));
    // Whoever has no GPU cannot give one.
    let most = if one.gpus == 0 { plain } else { plain.max(parts(lacking.gpus, one.gpus)) };
    u32::try_from(most).unwrap_or(u32::MAX)
}
