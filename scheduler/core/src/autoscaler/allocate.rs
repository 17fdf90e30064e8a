//! One round: who lacks containers gets them, one after the other, as far as there is room and quotas allow.

use super::{
    Autoscaler, Effect, Worker,
    elsewhere::Left,
    place::{Asked, Candidate, Obstacle, Placed, place},
    share::Class,
};
use crate::decision::Waiting;
use capstan_common::{
    gpu::GpuRequest,
    id::{ContainerId, FunctionKey, WorkerId},
    isolation::Needs,
    resource::Amount,
    worker::WorkerState,
};
use std::{collections::BTreeSet, sync::Arc};

impl Autoscaler {
    /// Gives one container at a time to whoever holds the least against its weight, so that a full cluster is shared
    /// (DESIGN §4); room that a poorer namespace at another scheduler lacks is left to it. The first that finds everything full
    /// keeps the worker where it will fit for itself: what is smaller overtakes it elsewhere only, where that cannot delay it.
    pub(super) fn allocate(&mut self, out: &mut Vec<Effect>) {
        let mut blocked: BTreeSet<(Arc<str>, Class)> = BTreeSet::new();
        let mut reserved: Option<WorkerId> = None;
        let mut left = self.leave_room();
        self.lacked = std::mem::take(&mut self.lacking).into_iter().map(|(name, (_, since))| (name, since)).collect();
        loop {
            let shares = |space: &str| self.share_of(space);
            let Some(function) = self.hungry.next(&shares, &blocked) else { break };
            let own = self.share_of(&function.namespace);
            let place_left = |core: &Self, left: &Left, asked: Asked| core.place(asked, None, left).ok();
            if self.left_to_another(own, &mut left, place_left) {
                continue;
            }
            let want = &self.wants[&function];
            let (amount, class) = (want.demand.amount, want.class());
            if let Some(why) = self.quota_passed(&function, amount) {
                self.tell_unplaced(&function, &class, &Waiting::new("tenant_limit", why), out);
                self.make_room_in_quota(&function.namespace, Some(amount), out);
                blocked.insert((function.namespace.clone(), class));
                continue;
            }
            let gpus = self.allowed(&function, amount, &class.2);
            let asked = Asked { amount, gpus: &gpus, needs: class.3 };
            match self.place(asked, reserved.as_ref(), &left) {
                Ok(placed) => self.grant(function, placed, out),
                Err(obstacle) => {
                    let why = Waiting::new("no_capacity", obstacle.sentence(asked));
                    self.tell_unplaced(&function, &class, &why, out);
                    if let Obstacle::Full(worker) | Obstacle::Kept(worker) = obstacle {
                        let full = (worker, reserved.is_none());
                        reserved = self.full(&function, (&class, asked), full, out).or(reserved);
                    }
                    blocked.insert((function.namespace.clone(), class));
                }
            }
        }
        self.close_round(&left);
    }

    /// The best worker for a container, or why there is none.
    fn place(&self, asked: Asked, reserved: Option<&WorkerId>, left: &Left) -> Result<Placed, Obstacle> {
        let quick = !mutated!(self.mutant, CAPACITY_PROMISED_TWICE);
        let found = quick.then(|| self.quickly(asked, reserved, left)).flatten();
        found.map_or_else(|| place(asked, self.candidates(reserved, left)), Ok)
    }

    /// What a container would take of a ready worker, by each of its preferences that this could ever hold.
    pub(super) fn could_hold(&self, worker: &WorkerId, asked: Asked) -> Vec<Amount> {
        let takes = |worker: &&Worker| worker.state == WorkerState::Ready && worker.ground.takes(asked.needs);
        let worker = self.workers.get(worker).filter(takes);
        worker.map_or_else(Vec::new, |worker| asked.on(worker.capacity, &worker.gpu))
    }

    /// Every worker is full for the function: the first that finds that asks others to make room, and keeps a worker; what
    /// nobody here can give, other schedulers are told of.
    fn full(
        &mut self,
        function: &FunctionKey,
        (class, asked): (&Class, Asked),
        (worker, first): (WorkerId, bool),
        out: &mut Vec<Effect>,
    ) -> Option<WorkerId> {
        if !first {
            self.lacks(function, (class, asked), 0);
            return None;
        }
        let (kept, yields) = self.ask_to_yield(function, asked, worker, out);
        self.lacks(function, (class, asked), u32::from(yields));
        Some(kept)
    }

    pub(super) fn share_of(&self, namespace: &str) -> u64 {
        self.share_with(namespace, Amount::default(), Amount::default())
    }

    /// Why the quota of its namespace keeps a function from one more container, if it does.
    fn quota_passed(&self, function: &FunctionKey, amount: Amount) -> Option<String> {
        let namespace = &function.namespace;
        let quota = self.policies.get(namespace)?.quota;
        let (held, used) = self.everywhere(namespace);
        let bound = quota.passed(held, used, amount)?;
        let what = match quota.passed(0, Amount::default(), amount) {
            Some(_) => "one container of it asks for more; ask for less, or raise its quota",
            None => "it starts when others of it end, or raise its quota",
        };
        Some(format!("namespace `{namespace}` may take at most {bound}; {what}"))
    }

    /// Those of a container's preferences that the quota of its namespace leaves open.
    fn allowed(&self, function: &FunctionKey, amount: Amount, gpus: &[GpuRequest]) -> Vec<GpuRequest> {
        let open = |gpu: &&GpuRequest| self.quota_passed(function, amount.with_gpus(gpu.count)).is_none();
        gpus.iter().filter(open).cloned().collect()
    }

    /// Why no worker of the cluster could ever hold such a container, if that is so: a wish that only waits until somebody asks.
    pub fn impossible(&self, amount: Amount, gpus: &[GpuRequest], needs: Needs) -> Option<String> {
        let asked = Asked { amount, gpus, needs };
        match place(asked, self.candidates(None, &self.leave_room())) {
            Err(obstacle @ Obstacle::Impossible(_)) => Some(obstacle.sentence(asked)),
            _ => None,
        }
    }

    fn candidates<'a>(
        &'a self,
        reserved: Option<&'a WorkerId>,
        left: &'a Left,
    ) -> impl Iterator<Item = Candidate<'a>> + Clone {
        self.workers.iter().map(move |(id, worker)| Candidate {
            id,
            capacity: worker.capacity,
            gpu: &worker.gpu,
            free: if mutated!(self.mutant, CAPACITY_PROMISED_TWICE) {
                worker.capacity
            } else {
                worker.free(self.held.on(id)).minus(left.on(id))
            },
            state: worker.state,
            reserved: reserved == Some(id),
            flaps: worker.flaps,
            ground: worker.ground,
        })
    }

    fn grant(&mut self, function: FunctionKey, placed: Placed, out: &mut Vec<Effect>) {
        let Placed { worker, amount, gpu, chosen } = placed;
        let container = ContainerId(self.minter.mint());
        if let Some(want) = self.wants.get_mut(&function) {
            want.grants += 1;
            want.unplaced = None;
        }
        self.take(container, function.clone(), worker.clone(), amount);
        out.push(Effect::Grant { function, container, worker, amount, gpu, chosen });
    }

    /// Tells every pool of the class once why it waits.
    fn tell_unplaced(&mut self, first: &FunctionKey, class: &Class, why: &Waiting, out: &mut Vec<Effect>) {
        let told = Arc::new(why.clone());
        for function in self.hungry.of(&first.namespace, class) {
            let Some(want) = self.wants.get_mut(&function) else { continue };
            if want.unplaced.as_ref() != Some(&told) {
                want.unplaced = Some(told.clone());
                out.push(Effect::Unplaced { function, why: why.clone() });
            }
        }
    }
}
