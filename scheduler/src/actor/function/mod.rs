//! The shell around one function's core: it stamps events, makes records durable, and keeps promises afterwards.

mod messages;
mod web;

pub use web::{Enter, Leave, Place};

pub use messages::{Ask, Deploy, Deployed, Happen, Joined, Open, Pass, Reconfigured, Retire, Ring, Tell, Watch};

use super::{
    alarm::Set,
    autoscaler::Told,
    committer::Group,
    watch::{Update, Watchers},
};
use crate::{
    clock,
    shard::Env,
    store::{Store, StoreError, layout, load, patiently, stored},
};
use actix::prelude::*;
use capstan_common::{
    id::{CallId, FunctionKey, WorkerId},
    order::{Order, Start},
    refusal::{Code, Refusal},
    time::Time,
};
use capstan_scheduler_core::{
    autoscaler,
    effect::{Effect, Notice, Output, Promise},
    event::Event,
    function::{Function, Recovery},
    record::Record,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// The least pause between two commits of outcomes while so many inputs wait that their rate counts.
const PACE: Duration = Duration::from_millis(2);
/// So many inputs.
const PACED_BACKLOG: u64 = 64;
/// Records that wait for no others any more.
const PACED_RECORDS: usize = 256;
/// How long records that nobody waits for may ride along before they are written for themselves.
const LAZY_MS: u64 = 5;

/// What is owed once records are durable.
enum Pledge {
    /// The core's promise.
    Core(Promise),
    /// An answer to a client.
    Answer(oneshot::Sender<()>),
}

/// Owns one function.
pub struct FunctionActor {
    key: FunctionKey,
    env: Arc<Env>,
    core: Option<Function>,
    start: Option<Recovery>,
    out: Output,
    /// Records and promises of the next commit.
    records: Vec<Record>,
    pledges: Vec<Pledge>,
    urgent: bool,
    lazy_since: Option<Time>,
    /// When the last commit was handed over.
    flushed: Time,
    /// Outcomes wait for others now.
    pacing: bool,
    /// Pledges of the commit under way.
    under_way: Option<Vec<Pledge>>,
    committed: mpsc::Sender<()>,
    commits: Option<mpsc::Receiver<()>>,
    accepting: BTreeMap<CallId, Vec<oneshot::Sender<()>>>,
    watchers: Watchers,
    links: BTreeMap<WorkerId, mpsc::Sender<Order>>,
    web: web::Doors,
    alarm_at: Option<Time>,
    /// The shard was given up.
    retired: bool,
}

impl FunctionActor {
    /// An actor for a function that is to be deployed, or that was recovered.
    pub fn new(key: FunctionKey, env: Arc<Env>, start: Option<Recovery>) -> Self {
        let (committed, commits) = mpsc::channel(4);
        Self {
            key,
            env,
            core: None,
            start,
            out: Output::default(),
            records: Vec::new(),
            pledges: Vec::new(),
            urgent: false,
            lazy_since: None,
            flushed: Time::default(),
            pacing: false,
            under_way: None,
            committed,
            commits: Some(commits),
            accepting: BTreeMap::new(),
            watchers: Watchers::default(),
            links: BTreeMap::new(),
            web: web::Doors::default(),
            alarm_at: None,
            retired: false,
        }
    }

    fn missing(&self) -> Refusal {
        if self.retired {
            let detail = "another scheduler takes the function over; try again in a moment";
            return Refusal { retry_after_s: Some(1), ..Refusal::new(Code::Unavailable, detail) };
        }
        Refusal::new(Code::NotFound, format!("function `{}` does not exist", self.key))
    }

    fn step(&mut self, event: Event, ctx: &mut Context<Self>) -> Result<Option<CallId>, Refusal> {
        let missing = self.missing();
        let Some(core) = self.core.as_mut() else { return Err(missing) };
        let answer = core.step(clock::now(), event, &mut self.out);
        self.perform(ctx);
        answer
    }

    /// Tells the core what the scale-to-zero configuration says of its model, if it has one.
    fn tell_rule(&mut self, ctx: &mut Context<Self>) {
        let model = self.core.as_ref().and_then(|core| core.deployment().spec.model_id.clone());
        if let Some(model) = model {
            let rule = self.env.rule(&self.key, &model);
            let _ = self.step(Event::Ruled(rule), ctx);
        }
    }

    /// Does what the last step asked for.
    fn perform(&mut self, ctx: &mut Context<Self>) {
        let mut effects = std::mem::take(&mut self.out.effects);
        for effect in effects.drain(..) {
            self.effect(effect, ctx);
        }
        self.out.effects = effects;
        self.records.append(&mut self.out.records);
        self.pledges.extend(self.out.promises.drain(..).map(Pledge::Core));
        self.urgent |= std::mem::take(&mut self.out.urgent);
        if self.core.as_ref().is_some_and(Function::is_idle) {
            // Its room is kept for the next step while there is work; thousands of idle functions do without.
            self.out = Output::default();
        }
        self.flush(ctx);
        self.set_alarm();
    }

    fn effect(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::Order(worker, order) => self.order(&worker, self.completed(order)),
            Effect::Demand(demand) => self.tell_autoscaler(autoscaler::Event::Wanted(demand), ctx),
            Effect::Release(container) => {
                self.env.registry.unroute(container);
                self.tell_autoscaler(autoscaler::Event::Released(container), ctx);
            }
            Effect::Hold { container, worker, amount } => {
                self.env.registry.route(container, &self.key, &worker);
                let function = self.key.clone();
                self.tell_autoscaler(autoscaler::Event::Held { container, function, worker, amount }, ctx);
            }
            Effect::Load { call, number } => self.load(call, number, ctx),
            Effect::Credit { call, count } => self.watchers.tell(call, &Update::Credit(count)),
            Effect::Admit { request, container, worker, port } => self.admit(request, container, &worker, port),
            Effect::Expel { request, why } => self.web.expel(request, *why),
            Effect::AskRequests { within_ms } => self.ask_requests(within_ms, ctx),
            Effect::Started { container, decided, phases } => {
                self.env.telemetry.started(&self.key, container, decided, &phases);
            }
            Effect::Notice(notice) => self.notice(notice),
        }
    }

    fn notice(&self, notice: Notice) {
        let telemetry = &self.env.telemetry;
        match notice {
            Notice::LateOutcome { lease } => {
                telemetry.metrics.late_outcomes.inc();
                tracing::debug!(function = %self.key, lease = lease.0, "an outcome came after its lease had ended");
            }
            Notice::StartFailed { container, detail } => telemetry.start_failed(&self.key, container, &detail),
            Notice::ContainerEnded { container, detail } => telemetry.ended(&self.key, container, &detail),
            Notice::Scaled { from, to, reason } => {
                let is_model = |core: &Function| core.serving().spec.model_id.is_some() && !core.is_removed();
                let model = self.core.as_ref().is_some_and(is_model);
                if model && to == 0 {
                    tracing::info!(function = %self.key, from, "scale to zero: the model's retention has passed without a request");
                    telemetry.metrics.model_to_zero(&self.key);
                }
                telemetry.scaled(&self.key, from, to, reason);
            }
        }
    }

    /// An order with what only the shell knows: what programs are told of this scheduler.
    fn completed(&self, order: Order) -> Order {
        match order {
            Order::Start(start) => {
                let Some(core) = &self.core else { return Order::Start(start) };
                // Of its own revision: another one has other secrets and other rights.
                let spec = core.spec_of(start.revision);
                let mut env = self.env.function_tokens.environment(&start, spec.token.role);
                env.extend(self.env.secrets.environment(&start.function, &spec.secrets));
                Order::Start(Start { env, ..start })
            }
            other => other,
        }
    }

    /// An order that finds no link is not lost: when the worker joins again, its inventory shows what it lacks.
    fn order(&mut self, worker: &WorkerId, order: Order) {
        let cached = self.links.get(worker).filter(|link| !link.is_closed());
        let link = match cached {
            Some(link) => link.clone(),
            None => match self.env.registry.link(worker, self.env.shard) {
                Some(link) => {
                    self.links.insert(worker.clone(), link.orders.clone());
                    link.orders
                }
                None => return,
            },
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = link.try_send(order) {
            tracing::warn!(%worker, "the worker does not take its orders: its link is cut, it will join again");
            self.links.remove(worker);
            self.env.registry.cut(worker);
        }
    }

    fn tell_autoscaler(&self, event: autoscaler::Event, ctx: &mut Context<Self>) {
        if let Err(SendError::Full(told)) = self.env.autoscaler.try_send(Told(event)) {
            let waiting = self.env.autoscaler.send(told);
            ctx.spawn(actix::fut::wrap_future(async move {
                let _ = waiting.await;
            }));
        }
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&dyn Store) -> Result<T, StoreError> + Clone + Send + 'static,
        ctx: &mut Context<Self>,
        then: impl FnOnce(Result<T, StoreError>, &mut Self, &mut Context<Self>) + 'static,
    ) {
        let reading = patiently(self.env.store.clone(), read);
        ctx.spawn(reading.into_actor(self).map(then));
    }

    fn load(&self, call: CallId, number: u32, ctx: &mut Context<Self>) {
        let read = move |store: &dyn Store| {
            let bytes = store.get(&layout::segment(call, number))?;
            bytes.map_or(Ok(Vec::new()), |bytes| stored::decode(&bytes))
        };
        self.read(read, ctx, move |read, actor, ctx| match read {
            Ok(payloads) => drop(actor.step(Event::Loaded { call, number, payloads }, ctx)),
            Err(error) => {
                tracing::error!(%call, number, error = &error as &dyn std::error::Error, "a segment of inputs cannot be read");
                let why = format!("its segment of inputs cannot be read: {error}").into();
                drop(actor.step(Event::Unreadable { call, number, why }, ctx));
            }
        });
    }

    /// Reads single calls that waited in the store.
    fn fetch(&self, calls: Vec<CallId>, ctx: &mut Context<Self>) {
        let read =
            move |store: &dyn Store| calls.iter().map(|call| load::fetch(store, *call)).collect::<Result<Vec<_>, _>>();
        self.read(read, ctx, |read, actor, ctx| match read {
            Ok(calls) => drop(actor.step(Event::Fetched(calls), ctx)),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "calls cannot be read"),
        });
    }

    fn ask_requests(&self, within_ms: u64, ctx: &mut Context<Self>) {
        let spec = self.core.as_ref().map(|core| core.serving().spec.clone());
        let asked = spec.and_then(|spec| Some((spec.model_id.clone()?, spec.activity.clone()?)));
        let (Some(prometheus), Some((model, activity))) = (self.env.prometheus.clone(), asked) else { return };
        let key = self.key.clone();
        let asking = async move { prometheus.requests(&key, &model, &activity.counter, within_ms).await };
        let answered = asking.into_actor(self).map(|requests, actor: &mut Self, ctx| {
            drop(actor.step(Event::Asked(requests), ctx));
        });
        ctx.spawn(answered);
    }

    /// Hands records to the committer, one group at a time: what comes meanwhile makes the next group.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        if self.under_way.is_some() {
            return;
        }
        if self.records.is_empty() {
            let pledges = std::mem::take(&mut self.pledges);
            self.keep(pledges, ctx);
            return;
        }
        if !self.urgent && self.pledges.is_empty() {
            let since = *self.lazy_since.get_or_insert_with(clock::now);
            if clock::now().since_ms(since) < LAZY_MS {
                return;
            }
        }
        if let Some(wait) = self.paced() {
            if !std::mem::replace(&mut self.pacing, true) {
                ctx.run_later(wait, |actor, ctx| {
                    actor.pacing = false;
                    actor.flush(ctx);
                });
            }
            return;
        }
        let group =
            Group { owner: self.key.clone(), records: std::mem::take(&mut self.records), done: self.committed.clone() };
        match self.env.committer.commit(group) {
            Ok(()) => {
                self.urgent = false;
                self.lazy_since = None;
                self.flushed = clock::now();
                self.under_way = Some(std::mem::take(&mut self.pledges));
            }
            Err(group) => {
                self.records = group.records;
                ctx.notify_later(Ring, Duration::from_millis(1));
            }
        }
    }

    /// How long outcomes may wait for others: while many inputs wait their rate counts, and each commit costs a sync and four wakings.
    /// What somebody waits for alone, an acceptance for one, waits for nobody.
    fn paced(&self) -> Option<Duration> {
        let rest = PACE.saturating_sub(Duration::from_micros(clock::now().since_us(self.flushed)));
        let outcome =
            |pledge: &Pledge| matches!(pledge, Pledge::Core(Promise::Settled { .. } | Promise::Recorded { .. }));
        let many = || self.core.as_ref().is_some_and(|core| core.backlog() >= PACED_BACKLOG);
        let waits = !rest.is_zero() && self.records.len() < PACED_RECORDS && self.pledges.iter().all(outcome) && many();
        waits.then_some(rest)
    }

    /// Records are durable: do what was promised.
    fn keep(&mut self, pledges: Vec<Pledge>, ctx: &mut Context<Self>) {
        for pledge in pledges {
            match pledge {
                Pledge::Core(promise) => self.keep_promise(promise, ctx),
                // A client that went away does not wait for its answer.
                Pledge::Answer(waiting) => {
                    let _ = waiting.send(());
                }
            }
        }
    }

    fn keep_promise(&mut self, promise: Promise, ctx: &mut Context<Self>) {
        match promise {
            Promise::Fetch { calls } => self.fetch(calls, ctx),
            Promise::Accepted { call } => {
                for waiting in self.accepting.remove(&call).unwrap_or_default() {
                    // As above.
                    let _ = waiting.send(());
                }
            }
            Promise::Settled { call, entries } => {
                let spec = self.core.as_ref().map(|core| core.serving().spec.clone());
                let model = spec.as_ref().and_then(|spec| spec.model_id.as_deref());
                self.env.telemetry.settled(&self.key, model, call, &entries);
                self.watchers.tell(call, &Update::Ended(entries));
            }
            Promise::Closed { call, state } => {
                self.env.telemetry.closed(call);
                self.watchers.tell(call, &Update::Closed(state));
            }
            Promise::Recorded { worker, container, leases } => {
                self.order(&worker, Order::Recorded { container, leases });
            }
        }
    }

    fn set_alarm(&mut self) {
        let Some(core) = self.core.as_ref() else { return };
        let lazy = self.lazy_since.map(|since| since.plus_ms(LAZY_MS));
        let Some(at) = core.next_alarm().into_iter().chain(lazy).min() else { return };
        if self.alarm_at.is_some_and(|set| set <= at) {
            return;
        }
        self.alarm_at = Some(at);
        if let Some(function) = self.own_address() {
            let set = Set { at, key: self.key.clone(), function };
            if let Err(SendError::Full(set)) = self.env.alarm.try_send(set) {
                actix::spawn(self.env.alarm.send(set));
            }
        }
    }

    fn own_address(&self) -> Option<Addr<Self>> {
        self.env.registry.function(&self.key)
    }

    /// Answers once everything up to now is durable.
    fn when_durable(&mut self, ctx: &mut Context<Self>) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        match self.under_way.as_mut() {
            Some(under_way) if self.records.is_empty() => under_way.push(Pledge::Answer(tell)),
            _ => self.pledges.push(Pledge::Answer(tell)),
        }
        self.flush(ctx);
        told
    }

    /// A removed function that has nothing left ends.
    fn end_if_gone(&mut self, ctx: &mut Context<Self>) {
        let gone = self.core.as_ref().is_some_and(Function::is_gone);
        if gone && self.records.is_empty() && self.under_way.is_none() {
            self.env.registry.drop_function(&self.key);
            self.env.telemetry.metrics.forget(&self.key);
            let key = self.key.clone();
            self.tell_autoscaler(autoscaler::Event::Forgotten(key), ctx);
            ctx.stop();
        }
    }
}
