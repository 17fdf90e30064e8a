//! Requests through `/web`: a place in a container for as long as each lasts, and what is told of it afterwards.

use super::{Api, mint_call};
use crate::{
    actor::function::{Enter, FunctionActor, Leave, Place},
    clock,
    telemetry::Telemetry,
};
use actix::Addr;
use bytes::Bytes;
use capstan_common::{
    id::{CallId, ContainerId, FunctionKey, RequestId},
    input::{Failure, FailureKind, Outcome, Payload},
    refusal::{Code, Refusal},
    time::Time,
    trace,
};
use capstan_scheduler_core::record::Entry;
use std::sync::{Arc, atomic::Ordering};
use tokio::sync::oneshot;

/// A web request that is not over. Dropped, it leaves: its slot is free, and its end is told as that of an input.
pub struct Visit {
    actor: Addr<FunctionActor>,
    telemetry: Arc<Telemetry>,
    function: FunctionKey,
    request: RequestId,
    /// What its spans are derived from.
    trace: CallId,
    traceparent: Arc<str>,
    submitted: Time,
    inside: Option<Inside>,
}

/// What is known of a request that has a container.
struct Inside {
    container: ContainerId,
    model: Option<Arc<str>>,
    since: Time,
    outcome: Outcome,
}

impl Visit {
    /// The trace context that the container gets.
    pub fn traceparent(&self) -> String {
        trace::traceparent(&self.traceparent, self.trace, 0, 1)
    }

    /// The container has answered: what is below 400 is a success.
    pub fn answered(&mut self, status: u16) {
        let outcome = match status {
            ..400 => Outcome::Succeeded(Payload::json(Bytes::new())),
            _ => failed(FailureKind::Function, &format!("HTTP {status}")),
        };
        self.ended(outcome);
    }

    /// There is no whole answer: the container went, or the time was over.
    pub fn broke(&mut self, why: &Refusal) {
        let kind = if why.code == Code::FunctionTimeout { FailureKind::Timeout } else { FailureKind::Crashed };
        self.ended(failed(kind, &why.detail));
    }

    /// It was not sent after all, and is tried elsewhere: nothing is told of it.
    pub fn retract(&mut self) {
        self.inside = None;
    }

    fn ended(&mut self, outcome: Outcome) {
        if let Some(inside) = &mut self.inside {
            inside.outcome = outcome;
        }
    }
}

fn failed(kind: FailureKind, what: &str) -> Outcome {
    Outcome::Failed(Failure::new(kind, "WebRequest", what))
}

impl Drop for Visit {
    fn drop(&mut self) {
        let spoilt = self.inside.as_ref().is_some_and(
            |inside| matches!(&inside.outcome, Outcome::Failed(failure) if failure.kind == FailureKind::Timeout),
        );
        let (actor, request) = (self.actor.clone(), self.request);
        // The function may be gone: then nothing of the request is left there either.
        actix::spawn(async move {
            let _ = actor.send(Leave { request, spoilt }).await;
        });
        let Some(inside) = self.inside.take() else { return };
        let now = clock::now();
        let entry = Entry {
            index: 0,
            count: 1,
            attempts: 1,
            container: inside.container,
            submitted: self.submitted,
            leased: inside.since,
            run_us: now.since_us(inside.since),
            finished: now,
            outcome: inside.outcome,
            tries: None,
        };
        if let Some(tracer) = &self.telemetry.tracer {
            tracer.parent(self.trace, &self.traceparent);
        }
        self.telemetry.settled(&self.function, inside.model.as_deref(), self.trace, &[entry]);
        self.telemetry.closed(self.trace);
    }
}

impl Api {
    /// Waits for a place in one of a function's containers, which starts one where there is none.
    pub async fn visit(&self, key: &FunctionKey, traceparent: Option<String>) -> Result<(Visit, Place), Refusal> {
        if self.env.stopping.is_cancelled() {
            let refusal = Refusal::new(Code::Unavailable, "the scheduler is stopping; try again when it is back");
            return Err(Refusal { retry_after_s: Some(5), ..refusal });
        }
        let actor = self.actor(key)?;
        let request = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        let (place, told) = oneshot::channel();
        let mut visit = Visit {
            actor: actor.clone(),
            telemetry: self.env.telemetry.clone(),
            function: key.clone(),
            request,
            trace: mint_call(key),
            traceparent: traceparent.unwrap_or_default().into(),
            submitted: clock::now(),
            inside: None,
        };
        actor.send(Enter { request, place }).await.map_err(|_| self.gone(key))??;
        let gone = |_| Refusal::new(Code::Unavailable, "the scheduler is stopping; try again when it is back");
        let place = told.await.map_err(gone)??;
        visit.inside = Some(Inside {
            container: place.container,
            model: place.model.clone(),
            since: clock::now(),
            outcome: Outcome::Cancelled,
        });
        Ok((visit, place))
    }
}
