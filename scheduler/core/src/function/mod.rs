//! One function: its queue, calls, pool, leases, limits, and the demand that its settings ask for.
//!
//! `step` takes an event and a time and says what is now true (records), what to do at once (effects), and what to do
//! once the records are durable (promises). A refused event changes nothing.

mod adopt;
mod bid;
mod call;
mod delayed;
mod dispatch;
mod explain;
mod instance;
mod invariant;
mod model;
mod open;
mod park;
mod pool;
mod queue;
mod recover;
mod rollout;
mod scale;
mod settings;
mod settle;
mod sizing;
mod start;
mod timer;
mod waits;
mod web;

pub use call::Runs;
pub use explain::{ContainerView, InputView};
pub use model::ZeroRule;
pub use recover::{RecoveredCall, Recovery};
pub use rollout::Progress;
pub use sizing::size;
pub use timer::{ScheduleView, call_of};

use crate::{
    effect::{Effect, Output},
    event::Event,
    limits::Limits,
    record::{Deployment, Record, UsedKey},
};
use call::Call;
use capstan_common::{
    call::CallKind,
    function::{AutoscalerSettings, FunctionSpec, Overrides},
    id::{CallId, Epoch, FunctionKey, LeaseId, Minter, Revision},
    refusal::{Code, Refusal},
    time::Time,
    validate,
};
use delayed::Delayed;
use park::Parked;
use pool::{Life, Pool, Starts};
use queue::Queue;
use rollout::Rollout;
use sizing::Sizing;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use timer::Timer;
use waits::Stop;
use web::Web;

/// Inputs of a function that wait or run, by who waits for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Side {
    pending: u64,
    running: u64,
}

/// Where an input is, for the accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    Pending,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

/// One function and all that it owns.
#[derive(Debug, Clone)]
pub struct Function {
    key: FunctionKey,
    limits: Arc<Limits>,
    minter: Minter,
    now: Time,
    deployed: Deployment,
    overrides: Overrides,
    effective: AutoscalerSettings,
    removed: bool,
    /// After a restart: what known workers hold is not known yet, so nothing is given out.
    holding: bool,
    /// The store keeps what room it has for what runs and for cancels: nothing more is given out.
    store_full: bool,
    calls: BTreeMap<CallId, Call>,
    /// Calls with outcomes of this step.
    touched: BTreeSet<CallId>,
    /// Calls with inputs in the store only.
    tails: BTreeSet<CallId>,
    /// Maps that may still send.
    maps: BTreeSet<CallId>,
    queue: Queue,
    web: Web,
    delayed: Delayed,
    parked: Parked,
    pool: Pool,
    starts: Starts,
    rollout: Rollout,
    interactive: Side,
    background: Side,
    /// Inputs that maps may send without asking.
    credit: u64,
    timer: Timer,
    sizing: Sizing,
    /// At what the last dispatch stopped.
    stopped: Stop,
    keys: BTreeMap<String, UsedKey>,
    key_ages: VecDeque<(Time, String)>,
    late_outcomes: u64,
    /// Of an instance: since when it has had nothing to do.
    unused_since: Option<Time>,
}

impl Function {
    /// A function's first deployment, or the first after its removal. `before` is the last revision that ever was under its
    /// name: a number names one revision only, so that a worker's old container is never taken for a new one.
    pub fn deploy(
        key: FunctionKey,
        epoch: Epoch,
        limits: Arc<Limits>,
        now: Time,
        (spec, before): (Arc<FunctionSpec>, Revision),
        out: &mut Output,
    ) -> Result<Self, Refusal> {
        validate::spec(&spec)?;
        let deployed = Deployment { revision: Revision(before.0 + 1), spec, at: now };
        out.records.push(Record::Deployed(deployed.clone()));
        out.urgent = true;
        let mut function = Self::new(key, epoch, limits, deployed, Overrides::default());
        function.now = now;
        function.begin_revision(now, out);
        function.conclude(now, out);
        Ok(function)
    }

    fn new(key: FunctionKey, epoch: Epoch, limits: Arc<Limits>, deployed: Deployment, overrides: Overrides) -> Self {
        Self {
            effective: overrides.over(&deployed.spec.autoscaler),
            key,
            limits,
            minter: Minter::new(epoch),
            now: Time(0),
            deployed,
            overrides,
            removed: false,
            holding: false,
            store_full: false,
            calls: BTreeMap::new(),
            touched: BTreeSet::new(),
            tails: BTreeSet::new(),
            maps: BTreeSet::new(),
            queue: Queue::default(),
            web: Web::default(),
            delayed: Delayed::default(),
            parked: Parked::default(),
            pool: Pool::default(),
            starts: Starts::default(),
            rollout: Rollout::default(),
            interactive: Side::default(),
            background: Side::default(),
            credit: 0,
            timer: Timer::default(),
            sizing: Sizing::default(),
            stopped: Stop::default(),
            keys: BTreeMap::new(),
            key_ages: VecDeque::new(),
            late_outcomes: 0,
            unused_since: None,
        }
    }

    /// Takes an event. Answers the call that an `Open` made or, by its key, had made before.
    pub fn step(&mut self, now: Time, event: Event, out: &mut Output) -> Result<Option<CallId>, Refusal> {
        self.now = self.now.max(now);
        let now = self.now;
        let answer = self.apply(now, event, out);
        self.conclude(now, out);
        answer
    }

    /// What follows from any event: inputs leave, ends are recorded, the pool is sized.
    fn conclude(&mut self, now: Time, out: &mut Output) {
        if self.sizing.profiles.turn(now) {
            self.settle_settings();
        }
        self.run_due(now, out);
        self.release_delayed(now);
        self.free_old_keys(now, out);
        self.stopped = self.dispatch(now, out);
        self.record_ends(now, out);
        if self.may_run_next() {
            // A run that the one which has just ended held up.
            self.run_due(now, out);
            self.stopped = self.dispatch(now, out);
        }
        self.load_tails(out);
        self.fetch_parked(out);
        self.ask_requests(out);
        self.grant_credit(out);
        self.rescale(now, out);
        self.go_if_unused(now, out);
    }

    fn apply(&mut self, now: Time, event: Event, out: &mut Output) -> Result<Option<CallId>, Refusal> {
        match event {
            Event::Deploy { spec, at_once } => self.redeploy(now, spec, at_once, out)?,
            Event::Remove => self.remove(now, out),
            Event::Patch(patch) => self.patch(&patch, out)?,
            Event::Pause(paused) => self.pause(now, paused, out)?,
            Event::Ruled(rule) => self.sizing.model.set_rule(rule),
            Event::Looked { container, detail } => self.looked(container, detail),
            Event::Counted { container, value } => self.counted(now, container, value),
            Event::Asked(requests) => self.sizing.model.answered(now, requests),
            Event::Touch => self.touch(now)?,
            Event::Open(opening) => return self.open(now, *opening, out).map(Some),
            Event::Arrive { call, payloads } => self.arrive(now, call, payloads)?,
            Event::Close { call } => self.close(call),
            Event::Collect { call, count } => self.collect(call, count),
            Event::Cancel { call } => self.cancel(now, call, out),
            Event::Abandon { call } => self.abandon(now, call),
            Event::Loaded { call, number, payloads } => self.loaded(call, number, payloads),
            Event::Unreadable { call, number, why } => self.unreadable(now, call, number, &why),
            Event::Fetched(calls) => self.fetched(now, calls),
            Event::Enter { request } => self.enter(now, request)?,
            Event::Leave { request, spoilt } => self.leave(now, request, spoilt, out),
            Event::Granted { container, worker, amount, gpu, chosen } => {
                self.granted(now, container, (worker, amount, gpu, chosen), out);
            }
            Event::Unplaced(why) => self.sizing.bid.refused(why),
            Event::GiveWay { worker, count, busy } => self.give_way(worker.as_ref(), count, busy, out),
            Event::Refused { container, reason } => self.refused(now, container, reason, out),
            Event::Spawned { .. } | Event::Alarm => {}
            Event::Ready { container, phases, port } => self.ready(now, container, (phases, port), out),
            Event::Finished { container, done } => self.finished(now, container, done, out),
            Event::Returned { container, leases, closed } => self.returned(now, container, &leases, closed, out),
            Event::Ended { container, ending, begun } => self.ended(now, container, ending, &begun, out),
            Event::Inventory { worker, held } => self.inventory(now, &worker, held, out),
            Event::WorkerLost { worker } => self.worker_lost(now, &worker, out),
            Event::StoreFull(full) => self.store_full = full,
            Event::Settled => self.holding = false,
            Event::StopContainer { container } => self.stop_container(container, out)?,
            Event::DrainWorker { worker } => self.drain_worker(&worker, out),
        }
        Ok(None)
    }

    fn redeploy(&mut self, now: Time, spec: Arc<FunctionSpec>, at_once: bool, out: &mut Output) -> Result<(), Refusal> {
        validate::spec(&spec)?;
        let before = Some(self.serving().clone()).filter(|_| !self.removed && !at_once && self.outlasts(&spec));
        self.stop_trials(out);
        self.removed = false;
        self.deployed = Deployment { revision: Revision(self.deployed.revision.0 + 1), spec, at: now };
        // SPEC D09: a deployment drops all dynamic settings.
        self.overrides = Overrides::default();
        self.begin_revision(now, out);
        out.records.push(Record::Deployed(self.deployed.clone()));
        match before {
            Some(before) => self.begin_rollout(before, out),
            None => self.take_over(out),
        }
        out.urgent = true;
        Ok(())
    }

    /// What a revision brings besides its settings.
    fn begin_revision(&mut self, now: Time, out: &mut Output) {
        self.sizing.begin_revision(&self.deployed.spec, now);
        self.settle_settings();
        self.set_timer(now, out);
        self.sizing.model.was_active(now);
    }

    /// Every container takes nothing new; idle ones stop now, busy ones when they are done.
    fn retire_all(&mut self, out: &mut Output) {
        let all: Vec<_> = self.pool.iter().map(|(id, _)| id).collect();
        for id in all {
            self.retire(id, "the function was removed", out);
        }
    }

    fn remove(&mut self, now: Time, out: &mut Output) {
        if self.removed {
            return;
        }
        // What runs may end by itself; what waits ends as cancelled.
        let calls: Vec<_> = self.calls.keys().copied().chain(self.parked.ids()).collect();
        for call in calls {
            self.abandon(now, call);
        }
        self.removed = true;
        let gone = Refusal::new(Code::NotFound, format!("function `{}` was removed", self.key));
        self.expel_waiting(&gone, out);
        self.retire_all(out);
        for (_, key) in std::mem::take(&mut self.key_ages) {
            self.keys.remove(&key);
            out.records.push(Record::KeyFreed(key));
        }
        self.rollout = Rollout::default();
        out.records.push(Record::Removed(self.deployed.revision));
        out.urgent = true;
    }

    fn must_exist(&self) -> Result<(), Refusal> {
        if self.removed {
            return Err(Refusal::new(Code::NotFound, format!("function `{}` does not exist", self.key)));
        }
        Ok(())
    }

    /// Moves `n` inputs of a call in all accounts.
    fn shift(&mut self, call: CallId, from: Place, to: Place, n: u64) {
        let Some(call) = self.calls.get_mut(&call) else {
            return;
        };
        let side = if call.kind.is_interactive() { &mut self.interactive } else { &mut self.background };
        match from {
            Place::Outside => call.counts.total += n,
            Place::Pending => {
                call.counts.pending -= n;
                side.pending -= n;
            }
            Place::Running => {
                call.counts.running -= n;
                side.running -= n;
            }
            Place::Succeeded | Place::Failed | Place::Cancelled => unreachable!("an ended input does not move"),
        }
        match to {
            Place::Pending => {
                call.counts.pending += n;
                side.pending += n;
            }
            Place::Running => {
                call.counts.running += n;
                side.running += n;
            }
            Place::Succeeded => call.counts.succeeded += n,
            Place::Failed => call.counts.failed += n,
            Place::Cancelled => call.counts.cancelled += n,
            Place::Outside => unreachable!("an accepted input does not vanish"),
        }
    }

    fn mint_lease(&mut self) -> LeaseId {
        LeaseId(self.minter.mint())
    }

    fn release_delayed(&mut self, now: Time) {
        while let Some(input) = self.delayed.pop_due(now) {
            self.queue.push_front(input);
        }
    }

    fn free_old_keys(&mut self, now: Time, out: &mut Output) {
        let keep_ms = self.limits.idempotency_s * 1000;
        while let Some((at, _)) = self.key_ages.front() {
            if at.plus_ms(keep_ms) > now {
                return;
            }
            let Some((_, key)) = self.key_ages.pop_front() else { return };
            self.keys.remove(&key);
            out.records.push(Record::KeyFreed(key));
        }
    }

    /// The next time that the function wants an `Alarm`, if any.
    pub fn next_alarm(&self) -> Option<Time> {
        let key = self.key_ages.front().map(|(at, _)| at.plus_ms(self.limits.idempotency_s * 1000));
        let pool = [self.batch_due(), self.idle_due(), self.start_due(), self.unused_due(), self.timer_due()];
        let pool = pool.into_iter().chain([self.trial_due()]);
        let (sizing, seen) = (&self.sizing, self.seen());
        let model = [sizing.model.retention_due(&seen), sizing.model.ask_due(&seen)];
        let sizes =
            [sizing.over_due(self.now, &self.limits), sizing.bid.due(), sizing.profiles.next(), sizing.record_due()];
        [self.delayed.next_due(), key].into_iter().chain(pool).chain(model).chain(sizes).flatten().min()
    }

    /// The function's name.
    pub fn key(&self) -> &FunctionKey {
        &self.key
    }

    /// The revision that was deployed last.
    pub fn deployment(&self) -> &Deployment {
        &self.deployed
    }

    /// Whether it was removed and nothing of it is left.
    pub fn is_gone(&self) -> bool {
        self.removed && self.pool.is_empty() && self.calls.is_empty()
    }

    /// Inputs and web requests whose clients wait for them.
    pub fn interactive(&self) -> u64 {
        self.interactive.pending + self.interactive.running
    }

    /// Whether no input waits or runs.
    pub fn is_idle(&self) -> bool {
        self.inactive_since().is_some()
    }

    /// Whether it was removed.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    fn order(&self, id: capstan_common::id::ContainerId, order: capstan_common::order::Order, out: &mut Output) {
        if let Some(container) = self.pool.get(id) {
            out.effects.push(Effect::Order(container.worker.clone(), order));
        }
    }

    fn lane_limit(&self, kind: CallKind) -> u32 {
        match kind {
            CallKind::Map => self.limits.map_running,
            _ => u32::MAX,
        }
    }

    /// Whether the container still takes new work.
    fn takes_work(life: &Life) -> bool {
        matches!(life, Life::Ready | Life::Starting | Life::Trial)
    }
}
