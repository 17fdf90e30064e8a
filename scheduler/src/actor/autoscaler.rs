//! The shell around the autoscaler's core.

use super::{function::Happen, registry::Registry};
use actix::prelude::*;
use capstan_common::{
    gpu::GpuRequest,
    id::{Epoch, WorkerId},
    isolation::Needs,
    resource::Amount,
};
use capstan_scheduler_core::{
    autoscaler::{Autoscaler, Effect, Event, Policy, Summary},
    event,
};
use std::sync::Arc;

/// Owns the autoscaler of one scheduler.
pub struct AutoscalerActor {
    core: Autoscaler,
    registry: Arc<Registry>,
    out: Vec<Effect>,
}

impl AutoscalerActor {
    /// Knows nothing yet.
    pub fn new(epoch: Epoch, registry: Arc<Registry>) -> Self {
        Self { core: Autoscaler::new(epoch), registry, out: Vec::new() }
    }
}

impl Actor for AutoscalerActor {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1 << 16);
    }
}

/// Something that concerns the autoscaler.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Told(pub Event);

/// What of a worker is given out.
#[derive(Message)]
#[rtype(result = "Option<Amount>")]
pub struct UsedOf(pub WorkerId);

/// A stored namespace, on its way to the autoscaler.
pub struct Governed;

/// What is known of namespaces.
#[derive(Message)]
#[rtype(result = "Vec<Space>")]
pub struct Spaces;

/// One namespace.
#[derive(MessageResponse)]
pub struct Space {
    /// Its name.
    pub name: Arc<str>,
    /// Its weight and quota.
    pub policy: Policy,
    /// Its containers.
    pub held: u32,
    /// What they take.
    pub used: Amount,
}

/// How many nodes of this size hold what all functions of the cluster have and want.
#[derive(Message)]
#[rtype(result = "u64")]
pub struct Nodes(pub Amount);

impl Handler<Nodes> for AutoscalerActor {
    type Result = u64;
    fn handle(&mut self, Nodes(size): Nodes, _: &mut Context<Self>) -> u64 {
        self.core.nodes(size)
    }
}

/// Why no worker could ever hold such a container, if that is so.
#[derive(Message)]
#[rtype(result = "Option<String>")]
pub struct Impossible(pub Amount, pub Vec<GpuRequest>, pub Needs);

impl Handler<Impossible> for AutoscalerActor {
    type Result = Option<String>;
    fn handle(&mut self, Impossible(amount, gpus, needs): Impossible, _: &mut Context<Self>) -> Option<String> {
        self.core.impossible(amount, &gpus, needs)
    }
}

/// What other schedulers are told of namespaces.
#[derive(Message)]
#[rtype(result = "Summary")]
pub struct Summarize;

impl Handler<Summarize> for AutoscalerActor {
    type Result = MessageResult<Summarize>;
    fn handle(&mut self, _: Summarize, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.core.summary())
    }
}

impl Handler<Spaces> for AutoscalerActor {
    type Result = Vec<Space>;
    fn handle(&mut self, _: Spaces, _: &mut Context<Self>) -> Vec<Space> {
        let spaces = self.core.spaces();
        spaces.map(|(name, policy, held, used)| Space { name: name.clone(), policy, held, used }).collect()
    }
}

impl Handler<UsedOf> for AutoscalerActor {
    type Result = Option<Amount>;
    fn handle(&mut self, UsedOf(worker): UsedOf, _: &mut Context<Self>) -> Option<Amount> {
        self.core.worker(&worker).map(|(_, used, _)| used)
    }
}

impl Handler<Told> for AutoscalerActor {
    type Result = ();
    fn handle(&mut self, Told(event): Told, ctx: &mut Context<Self>) {
        let mut out = std::mem::take(&mut self.out);
        self.core.step(event, &mut out);
        for effect in out.drain(..) {
            let (function, event) = match effect {
                Effect::Grant { function, container, worker, amount, gpu, chosen } => {
                    self.registry.route(container, &function, &worker);
                    (function, event::Event::Granted { container, worker, amount, gpu, chosen })
                }
                Effect::Unplaced { function, why } => (function, event::Event::Unplaced(why)),
                Effect::GiveWay { function, worker, count, busy } => {
                    (function, event::Event::GiveWay { worker, count, busy })
                }
            };
            if let Some(actor) = self.registry.function(&function) {
                deliver(&actor, vec![event], ctx);
            }
        }
        self.out = out;
    }
}

/// Sends without waiting where there is room; otherwise waits beside, and drops nothing.
pub fn deliver<A: Actor<Context = Context<A>>>(
    to: &Addr<super::function::FunctionActor>,
    events: Vec<event::Event>,
    ctx: &mut Context<A>,
) {
    if let Err(SendError::Full(happen)) = to.try_send(Happen(events)) {
        let waiting = to.send(happen);
        ctx.spawn(actix::fut::wrap_future(async move {
            let _ = waiting.await;
        }));
    }
}
