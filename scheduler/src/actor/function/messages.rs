//! What a function's actor is told and asked, and what it does with each.

use super::{FunctionActor, Pledge};
use crate::{
    actor::watch::Watcher,
    clock,
    store::{
        layout::{self, Tombstone},
        store_refusal, stored,
    },
};
use actix::prelude::*;
use capstan_common::{
    function::FunctionSpec,
    id::{CallId, Revision, WorkerId},
    order::Order,
    refusal::{Code, Refusal},
    report::Held,
    stats::Stats,
};
use capstan_scheduler_core::{
    effect::Promise,
    event::{Event, Opening},
    function::Function,
    record::Deployment,
};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Things happened.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Happen(pub Vec<Event>);

/// A worker's link was made anew: what it holds of this function, and the way for orders to it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Joined {
    /// Which worker.
    pub worker: WorkerId,
    /// Which of its links: an older one has nothing to say any more.
    pub generation: u64,
    /// Its new link.
    pub orders: mpsc::Sender<Order>,
    /// What it holds.
    pub held: Vec<Held>,
}

/// The time that the core named may have come.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ring;

/// A client's event: answered once it is durable.
#[derive(Message)]
#[rtype(result = "Result<(), Refusal>")]
pub struct Tell(pub Event);

/// A client's event: answered at once, with nothing promised.
#[derive(Message)]
#[rtype(result = "Result<(), Refusal>")]
pub struct Pass(pub Event);

/// What a deployment made.
pub struct Deployed {
    /// The revision.
    pub deployment: Deployment,
    /// The revision that serves.
    pub live: Revision,
    /// Whether the function is new.
    pub new: bool,
    /// Numbers of that moment.
    pub stats: Stats,
}

/// Deploys a revision. Answers what it made, once it is durable.
#[derive(Message)]
#[rtype(result = "Result<Deployed, Refusal>")]
pub struct Deploy {
    /// The revision's spec.
    pub spec: Arc<FunctionSpec>,
    /// Only if this revision was deployed last.
    pub if_match: Option<u32>,
    /// Whether it takes over at once, and not when its first container is ready.
    pub at_once: bool,
}

/// Opens a call. Answers its id (or that of the call that the same key made before), for spawns once it is durable.
#[derive(Message)]
#[rtype(result = "Result<CallId, Refusal>")]
pub struct Open {
    /// The call.
    pub opening: Box<Opening>,
    /// Is told how it goes.
    pub watcher: Option<Watcher>,
}

/// Watches a live call. Answers whether it is live; if not, its end is in the store.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Watch {
    /// Which call.
    pub call: CallId,
    /// Is told how it goes.
    pub watcher: Watcher,
}

/// The shard is given up: nothing more is done, and what is under way is written, unless it is `lost` already. Answered then.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Retire {
    /// Whether somebody else owns it by now.
    pub lost: bool,
}

impl Handler<Retire> for FunctionActor {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, Retire { lost }: Retire, ctx: &mut Context<Self>) -> Self::Result {
        let durable = (!lost).then(|| self.when_durable(ctx));
        self.core = None;
        self.retired = true;
        let address = ctx.address();
        Box::pin(async move {
            if let Some(durable) = durable {
                // A committer that ends tells nobody.
                let _ = durable.await;
            }
            let _ = address.send(End).await;
        })
    }
}

/// The actor ends; whoever waits for it hears that it does.
#[derive(Message)]
#[rtype(result = "()")]
struct End;

impl Handler<End> for FunctionActor {
    type Result = ();
    fn handle(&mut self, _: End, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

/// The scale-to-zero configuration was replaced.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reconfigured;

impl Handler<Reconfigured> for FunctionActor {
    type Result = ();
    fn handle(&mut self, _: Reconfigured, ctx: &mut Context<Self>) {
        self.tell_rule(ctx);
    }
}

/// Reads from the core, also from that of a function that was removed and still has work.
pub struct Ask<T>(pub Box<dyn FnOnce(&Function) -> T + Send>);

impl<T: Send + 'static> Message for Ask<T> {
    type Result = Option<T>;
}

impl Actor for FunctionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1 << 14);
        if let Some(commits) = self.commits.take() {
            ctx.add_stream(tokio_stream::wrappers::ReceiverStream::new(commits));
        }
        if let Some(recovery) = self.start.take() {
            let (epoch, limits) = (self.env.epoch, self.env.limits.clone());
            self.core = Some(Function::recover(recovery, epoch, limits, clock::now(), &mut self.out));
            self.perform(ctx);
            self.tell_rule(ctx);
        }
    }
}

impl StreamHandler<()> for FunctionActor {
    fn handle(&mut self, (): (), ctx: &mut Context<Self>) {
        let pledges = self.under_way.take().unwrap_or_default();
        self.keep(pledges, ctx);
        self.flush(ctx);
        self.set_alarm();
        self.end_if_gone(ctx);
    }
}

impl Handler<Happen> for FunctionActor {
    type Result = ();
    fn handle(&mut self, Happen(events): Happen, ctx: &mut Context<Self>) {
        for event in events {
            // Events from workers and the autoscaler are facts: nobody waits for a refusal.
            let _ = self.step(event, ctx);
        }
        self.end_if_gone(ctx);
    }
}

impl Handler<Joined> for FunctionActor {
    type Result = ();
    fn handle(&mut self, joined: Joined, ctx: &mut Context<Self>) {
        let newest = self.env.registry.worker(&joined.worker).map(|worker| worker.generation);
        if newest.is_some_and(|newest| newest > joined.generation) {
            // What an older link told is not true any more.
            return;
        }
        self.links.insert(joined.worker.clone(), joined.orders);
        // A function that does not exist yet holds nothing.
        let _ = self.step(Event::Inventory { worker: joined.worker, held: joined.held }, ctx);
        self.end_if_gone(ctx);
    }
}

impl Handler<Ring> for FunctionActor {
    type Result = ();
    fn handle(&mut self, _: Ring, ctx: &mut Context<Self>) {
        self.alarm_at = None;
        let _ = self.step(Event::Alarm, ctx);
    }
}

impl Handler<Pass> for FunctionActor {
    type Result = Result<(), Refusal>;
    fn handle(&mut self, Pass(event): Pass, ctx: &mut Context<Self>) -> Self::Result {
        self.step(event, ctx).map(|_| ())
    }
}

impl Handler<Tell> for FunctionActor {
    type Result = ResponseFuture<Result<(), Refusal>>;
    fn handle(&mut self, Tell(event): Tell, ctx: &mut Context<Self>) -> Self::Result {
        let answer = self.step(event, ctx).map(|_| ());
        let durable = self.when_durable(ctx);
        Box::pin(async move {
            answer?;
            durable.await.map_err(|_| stopping())
        })
    }
}

impl Handler<Deploy> for FunctionActor {
    type Result = ResponseFuture<Result<Deployed, Refusal>>;
    fn handle(&mut self, deploy: Deploy, ctx: &mut Context<Self>) -> Self::Result {
        let answer = self.deploy(deploy, ctx);
        let made = self.core.as_ref().map(|core| (core.deployment().clone(), core.serving().revision, core.stats()));
        let durable = self.when_durable(ctx);
        Box::pin(async move {
            let new = answer?;
            durable.await.map_err(|_| stopping())?;
            let (deployment, live, stats) = made.ok_or_else(stopping)?;
            Ok(Deployed { deployment, live, new, stats })
        })
    }
}

impl FunctionActor {
    fn deploy(&mut self, deploy: Deploy, ctx: &mut Context<Self>) -> Result<bool, Refusal> {
        let live = self.core.as_ref().filter(|core| !core.is_removed());
        let revision = live.map_or(0, |core| core.deployment().revision.0);
        if let Some(expected) = deploy.if_match.filter(|expected| *expected != revision) {
            let detail = format!("revision {expected} was expected, {revision} is live");
            return Err(Refusal::new(Code::PreconditionFailed, detail));
        }
        let new = revision == 0;
        if self.core.is_some() {
            self.step(Event::Deploy { spec: deploy.spec, at_once: deploy.at_once }, ctx)?;
            self.tell_rule(ctx);
            return Ok(new);
        }
        let (key, env) = (self.key.clone(), self.env.clone());
        let last = env.store.get(&layout::tombstone(&key)).map_err(store_refusal)?;
        let last = last.map(|value| stored::decode::<Tombstone>(&value)).transpose().map_err(store_refusal)?;
        let before = Revision(last.map_or(0, |last| last.0));
        let spec = (deploy.spec, before);
        let core = Function::deploy(key, env.epoch, env.limits.clone(), clock::now(), spec, &mut self.out)?;
        self.core = Some(core);
        self.perform(ctx);
        self.tell_rule(ctx);
        Ok(new)
    }
}

impl Handler<Open> for FunctionActor {
    type Result = ResponseFuture<Result<CallId, Refusal>>;
    fn handle(&mut self, open: Open, ctx: &mut Context<Self>) -> Self::Result {
        let (asked, interactive) = (open.opening.call, open.opening.kind.is_interactive());
        let missing = self.missing();
        let Some(core) = self.core.as_mut() else {
            return Box::pin(async move { Err(missing) });
        };
        let answer = core.step(clock::now(), Event::Open(open.opening), &mut self.out);
        if let (Ok(Some(call)), Some(watcher)) = (&answer, open.watcher)
            && *call == asked
        {
            self.watchers.add(asked, watcher);
        }
        let (call, accepted) = match answer {
            Ok(Some(call)) if interactive && call == asked => (call, None),
            Ok(Some(call)) => {
                let (tell, told) = oneshot::channel();
                self.accepting.entry(call).or_default().push(tell);
                (call, Some(told))
            }
            Ok(None) => (asked, None),
            Err(refusal) => {
                self.perform(ctx);
                return Box::pin(async move { Err(refusal) });
            }
        };
        self.perform(ctx);
        Box::pin(async move {
            if let Some(told) = accepted {
                told.await.map_err(|_| stopping())?;
            }
            Ok(call)
        })
    }
}

impl Handler<Watch> for FunctionActor {
    type Result = bool;
    fn handle(&mut self, watch: Watch, _: &mut Context<Self>) -> bool {
        let live = self.core.as_ref().is_some_and(|core| core.call(watch.call).is_some());
        let closing = self
            .pledges
            .iter()
            .chain(self.under_way.iter().flatten())
            .any(|pledge| matches!(pledge, Pledge::Core(Promise::Closed { call, .. }) if *call == watch.call));
        if live || closing {
            self.watchers.add(watch.call, watch.watcher);
        }
        live || closing
    }
}

impl<T: Send + 'static> Handler<Ask<T>> for FunctionActor {
    type Result = MessageResult<Ask<T>>;
    fn handle(&mut self, Ask(question): Ask<T>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.core.as_ref().map(question))
    }
}

fn stopping() -> Refusal {
    Refusal::new(Code::Unavailable, "the scheduler is stopping; try again when it is back")
}
