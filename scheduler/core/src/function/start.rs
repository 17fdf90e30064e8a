//! Containers come and go: granted, ready, retired, stopped, dead, lost.

use super::{
    Function, Place,
    pool::{Container, Lease, Life, room},
    settle::Attempt,
};
use crate::{
    decision::{Choice, Waiting},
    effect::{Effect, Notice, Output},
    record::Deployment,
};
use capstan_common::{
    container::{Ending, Phase},
    container_spec::ContainerSpec,
    gpu::GpuRequest,
    id::{CallId, ContainerId, LeaseId, WorkerId},
    input::{Failure, FailureKind, Outcome},
    order::{Order, Start},
    refusal::{Code, Refusal},
    resource::Amount,
    time::Time,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The pause after a worker refused a container.
const REFUSED_PAUSE_MS: u64 = 100;

impl Function {
    pub(super) fn granted(
        &mut self,
        now: Time,
        id: ContainerId,
        (worker, amount, gpu, chosen): (WorkerId, Amount, Option<GpuRequest>, Choice),
        out: &mut Output,
    ) {
        self.sizing.bid.granted();
        let trial = self.wants_trial(now);
        let Deployment { revision, spec, .. } = if trial { &self.deployed } else { self.serving() }.clone();
        let (wishes, gpus) = (spec.gpus(), gpu.as_ref().map_or(0, |gpu| gpu.count));
        let serves = gpu.as_ref().map_or(wishes.is_empty(), |gpu| wishes.contains(gpu))
            && amount == spec.amount().with_gpus(gpus);
        if !trial && self.missing(now) == 0 || !serves {
            out.effects.push(Effect::Release(id));
            if !serves {
                // It was asked for before another revision came, which wants something else.
                self.sizing.bid.again();
            }
            return;
        }
        let start = Order::Start(Start {
            container: id,
            function: self.key.clone(),
            revision,
            spec: Arc::new(ContainerSpec::of(&spec)),
            gpus,
            env: Default::default(),
        });
        out.effects.push(Effect::Order(worker.clone(), start));
        self.pool.add(
            id,
            Container {
                worker,
                revision,
                life: if trial { Life::Trial } else { Life::Starting },
                adopted: false,
                trusted: spec.trusted,
                chosen: Some(chosen),
                decided: self.sizing.bid.asked_at().min(now),
                placed: now,
                since: now,
                leases: BTreeMap::new(),
                groups: BTreeMap::new(),
                requests: BTreeSet::new(),
                port: 0,
                run_us: None,
                served: 0,
                at_once: spec.groups_at_once(),
                room: room(&spec, None),
            },
        );
    }

    /// The worker had no room after all: a proposal that failed, not a container that failed. It is asked for again after a moment.
    pub(super) fn refused(&mut self, now: Time, id: ContainerId, reason: Arc<str>, out: &mut Output) {
        let Some(container) = self.pool.remove(id) else { return };
        let was_trial = container.life == Life::Trial;
        out.effects.push(Effect::Release(id));
        self.sizing.bid.refused(Waiting::new("no_capacity", &*reason));
        let starts = if was_trial { &mut self.rollout.starts } else { &mut self.starts };
        starts.not_before = starts.not_before.max(now.plus_ms(REFUSED_PAUSE_MS));
    }

    pub(super) fn ready(&mut self, now: Time, id: ContainerId, (phases, port): (Vec<Phase>, u16), out: &mut Output) {
        let times = self.pool.change(id, |container| {
            let is_trial = container.life == Life::Trial;
            if container.life == Life::Starting || is_trial {
                container.life = Life::Ready;
            }
            container.since = now;
            container.port = port;
            (container.decided, container.placed, container.adopted, is_trial)
        });
        let Some((decided, placed, adopted, is_trial)) = times else { return };
        if is_trial {
            self.take_over(out);
        }
        let place = Phase { name: "place".into(), us: placed.since_us(decided) };
        // What of the start is not the worker's: the order's way down and the report's way up.
        let there: u64 = phases.iter().map(|p| p.us).sum();
        let order = Phase { name: "order".into(), us: now.since_us(placed).saturating_sub(there) };
        let phases = [place, order].into_iter().chain(phases).collect();
        if self.pool.get(id).is_some_and(|c| c.revision == self.serving().revision) {
            // How long the start of one took that was there before its owner, nobody knows.
            self.starts.succeeded(now, Some(placed).filter(|_| !adopted));
        }
        out.effects.push(Effect::Started { container: id, decided, phases });
        self.after_work(id, out);
    }

    /// A server that is not ready was looked at: what was found says why its inputs wait.
    pub(super) fn looked(&mut self, id: ContainerId, detail: Arc<str>) {
        match self.pool.get(id).map(|container| &container.life) {
            Some(Life::Starting) => self.starts.looked = Some(detail),
            Some(Life::Trial) => self.rollout.starts.looked = Some(detail),
            _ => {}
        }
    }

    /// Takes no new work; stops now if it has none.
    pub(super) fn retire(&mut self, id: ContainerId, reason: &str, out: &mut Output) {
        let idle = self.pool.change(id, |container| {
            let idle = container.is_idle();
            if Self::takes_work(&container.life) && !idle {
                container.life = Life::Draining;
            }
            idle && Self::takes_work(&container.life)
        });
        if idle == Some(true) {
            self.stop(id, reason, out);
        }
    }

    /// Tells a container without work to stop.
    pub(super) fn stop(&mut self, id: ContainerId, reason: &str, out: &mut Output) {
        self.pool.change(id, |container| container.life = Life::Stopping);
        let stop = Order::Stop { container: id, grace_ms: self.limits.stop_grace_ms, reason: reason.into() };
        self.order(id, stop, out);
    }

    /// An operator stops a container: what it holds runs elsewhere and does not count as failed.
    pub(super) fn stop_container(&mut self, id: ContainerId, out: &mut Output) -> Result<(), Refusal> {
        if self.pool.get(id).is_none() {
            return Err(Refusal::new(Code::NotFound, format!("container {id} does not exist")));
        }
        self.stop(id, "stopped by an operator", out);
        Ok(())
    }

    /// Others wait: the longest idle containers above what is wanted stop, whatever their window; if busy ones are meant too,
    /// those with the least work take nothing new, down to the minimum.
    pub(super) fn give_way(&mut self, worker: Option<&WorkerId>, count: u32, busy: bool, out: &mut Output) {
        let keep = if busy { self.facts().min } else { self.sizing.wanted().max(self.facts().min) };
        let above = self.pool.live().saturating_sub(keep);
        for id in self.pool.lightest(worker, busy, count.min(above) as usize) {
            self.retire(id, "gives way to waiting work", out);
        }
        // The question is answered, also when nothing could be given.
        self.sizing.bid.again();
    }

    pub(super) fn drain_worker(&mut self, worker: &WorkerId, out: &mut Output) {
        let there: Vec<_> = self.pool.iter().filter(|(_, c)| c.worker == *worker).map(|(id, _)| id).collect();
        for id in there {
            self.retire(id, "its worker is drained", out);
        }
    }

    pub(super) fn ended(&mut self, now: Time, id: ContainerId, ending: Ending, begun: &[LeaseId], out: &mut Output) {
        let Some(container) = self.pool.remove(id) else { return };
        self.sizing.model.forget_counter(id);
        out.effects.push(Effect::Release(id));
        if self.is_rolling() {
            self.sizing.bid.look_again();
        }
        let detail = ending.sentence();
        out.effects.push(Effect::Notice(Notice::ContainerEnded { container: id, detail: detail.clone() }));
        self.expel_from(id, &detail, out);
        let ordered = container.life == Life::Stopping || ending.ordered;
        let useless = container.served == 0 && begun.is_empty() && container.requests.is_empty();
        if !ordered && container.life == Life::Trial {
            // What waits does not wait for it: the revision before goes on.
            self.rollout.starts.failed(now, container.placed, detail.clone(), &self.limits);
            out.effects.push(Effect::Notice(Notice::StartFailed { container: id, detail: detail.clone() }));
        } else if !ordered
            && (container.life == Life::Starting || useless)
            && container.revision == self.serving().revision
        {
            self.start_failed(now, id, &container, detail.clone(), out);
        }
        for (lease, Lease { input, given, .. }) in container.leases.into_iter().rev() {
            let attempt = Attempt { container: id, given, run_us: now.since_us(given) };
            self.queue.release(input.call, 1);
            if !begun.contains(&lease) {
                self.give_back(now, input);
            } else if ordered {
                self.attempt_lost(now, input, &detail, attempt, out);
            } else {
                let failure = Failure::new(FailureKind::Crashed, "ContainerCrashed", detail.clone());
                self.attempt_failed(now, input, failure, attempt, out);
            }
        }
    }

    /// A container died before it did anything: starts pause, and after the documented number of tries what waits fails
    /// with its exit code and last output.
    fn start_failed(&mut self, now: Time, id: ContainerId, container: &Container, detail: String, out: &mut Output) {
        self.starts.failed(now, container.placed, detail.clone(), &self.limits);
        out.effects.push(Effect::Notice(Notice::StartFailed { container: id, detail: detail.clone() }));
        let others_live = self.pool.iter().any(|(_, c)| matches!(c.life, Life::Ready | Life::Draining));
        if self.starts.failed < self.limits.start_tries || others_live {
            return;
        }
        let message = format!("no container would start in {} tries: {detail}", self.starts.failed);
        self.expel_waiting(&Refusal::new(Code::FunctionFailed, message.clone()), out);
        let outcome = Outcome::Failed(Failure::new(FailureKind::Startup, "StartupFailed", message));
        let calls: Vec<CallId> = self.calls.keys().copied().chain(self.parked.ids()).collect();
        for call in calls {
            self.unpark_to_end(call);
            self.end_waiting(now, call, &outcome);
        }
    }

    pub(super) fn worker_lost(&mut self, now: Time, worker: &WorkerId, out: &mut Output) {
        let lost: Vec<_> = self.pool.iter().filter(|(_, c)| c.worker == *worker).map(|(id, _)| id).collect();
        for id in lost {
            self.container_lost(now, id, &format!("worker {worker} is lost"), out);
        }
    }

    pub(super) fn container_lost(&mut self, now: Time, id: ContainerId, why: &str, out: &mut Output) {
        let Some(container) = self.pool.remove(id) else { return };
        self.sizing.model.forget_counter(id);
        out.effects.push(Effect::Release(id));
        out.effects.push(Effect::Notice(Notice::ContainerEnded { container: id, detail: why.into() }));
        self.expel_from(id, why, out);
        for Lease { input, given, .. } in container.leases.into_values().rev() {
            let attempt = Attempt { container: id, given, run_us: now.since_us(given) };
            self.queue.release(input.call, 1);
            self.attempt_lost(now, input, why, attempt, out);
        }
    }

    /// The account of an input that an adopted container holds: it runs, without having been given out here.
    pub(super) fn account_adopted(&mut self, call: CallId) {
        self.queue.adopt(call);
        self.shift(call, Place::Pending, Place::Running, 1);
    }
}
