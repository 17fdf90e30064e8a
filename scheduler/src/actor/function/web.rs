//! Requests through `/web`: who waits for a container, who is in one, and how they are told.

use super::FunctionActor;
use actix::prelude::*;
use capstan_common::{
    id::{ContainerId, RequestId, WorkerId},
    refusal::{Code, Refusal},
};
use capstan_scheduler_core::event::Event;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// A request's place: the container that works on it.
#[derive(Debug)]
pub struct Place {
    /// Which container.
    pub container: ContainerId,
    /// Where its server listens.
    pub address: SocketAddr,
    /// How long the request may last.
    pub timeout: Duration,
    /// The model that the function serves.
    pub model: Option<Arc<str>>,
    /// Told when the container is gone before the request is over.
    pub expelled: oneshot::Receiver<Refusal>,
}

/// A request comes. `place` is told where it may go, or why it may not; whatever comes of it, `Leave` must follow.
#[derive(Message)]
#[rtype(result = "Result<(), Refusal>")]
pub struct Enter {
    /// Which.
    pub request: RequestId,
    /// Is told its place.
    pub place: oneshot::Sender<Result<Place, Refusal>>,
}

/// A request is over, or its client has gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leave {
    /// Which.
    pub request: RequestId,
    /// Whether it ran past its time-out: its server may still work on it.
    pub spoilt: bool,
}

enum Door {
    Waiting(oneshot::Sender<Result<Place, Refusal>>),
    Inside(oneshot::Sender<Refusal>),
}

/// Requests that are not over.
#[derive(Default)]
pub struct Doors(BTreeMap<RequestId, Door>);

impl Doors {
    /// A request whose client has gone meanwhile needs no telling: it leaves by itself.
    pub fn expel(&mut self, request: RequestId, why: Refusal) {
        match self.0.remove(&request) {
            Some(Door::Waiting(place)) => drop(place.send(Err(why))),
            Some(Door::Inside(expelled)) => drop(expelled.send(why)),
            None => {}
        }
    }

    fn forget(&mut self, request: RequestId) {
        self.0.remove(&request);
    }
}

impl FunctionActor {
    pub(super) fn admit(&mut self, request: RequestId, container: ContainerId, worker: &WorkerId, port: u16) {
        let Some(Door::Waiting(place)) = self.web.0.remove(&request) else { return };
        let Some(host) = self.env.registry.worker(worker).map(|entry| entry.host) else {
            let detail = format!("worker {worker} cannot be reached");
            drop(place.send(Err(Refusal::new(Code::Unavailable, detail))));
            return;
        };
        let spec = self.core.as_ref().map(|core| core.serving().spec.clone());
        let (tell, expelled) = oneshot::channel();
        let given = Place {
            container,
            address: SocketAddr::new(host, port),
            timeout: Duration::from_millis(spec.as_ref().map_or(0, |spec| spec.timeout_s.ms)),
            model: spec.and_then(|spec| spec.model_id.as_deref().map(Arc::from)),
            expelled,
        };
        if place.send(Ok(given)).is_ok() {
            self.web.0.insert(request, Door::Inside(tell));
        }
    }
}

impl Handler<Leave> for FunctionActor {
    type Result = ();
    fn handle(&mut self, Leave { request, spoilt }: Leave, ctx: &mut Context<Self>) {
        self.web.forget(request);
        // Leaving is never refused.
        let _ = self.step(Event::Leave { request, spoilt }, ctx);
        self.end_if_gone(ctx);
    }
}

impl Handler<Enter> for FunctionActor {
    type Result = Result<(), Refusal>;
    fn handle(&mut self, Enter { request, place }: Enter, ctx: &mut Context<Self>) -> Self::Result {
        self.web.0.insert(request, Door::Waiting(place));
        let entered = self.step(Event::Enter { request }, ctx);
        if entered.is_err() {
            self.web.forget(request);
        }
        entered.map(|_| ())
    }
}
