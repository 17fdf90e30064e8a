//! Bringing inputs: invoke, spawn, spawn_map, map.

use super::{Api, mint_call};
use crate::{
    actor::{
        function::{FunctionActor, Open, Pass, Watch},
        watch::{Update, WATCH_BACKLOG},
    },
    shard::Env,
    store::{Change, StoreError, layout, store_refusal, stored},
};
use actix::Addr;
use bytes::Bytes;
use capstan_common::{
    call::CallKind,
    id::{CallId, FunctionKey},
    input::{Body, Payload},
    refusal::{Code, Refusal},
};
use capstan_scheduler_core::{
    event::{Event, FailFast, Inputs, Opening},
    record::{Entry, Segment},
};
use capstan_verb::call::{EndedView, Terms};
use futures_util::{StreamExt, stream::FuturesUnordered};
use sha2::{Digest, Sha256};
use std::{pin::Pin, sync::Arc};
use tokio::sync::mpsc;

/// Inputs in one packed segment, at most.
const SEGMENT_INPUTS: usize = 4096;
/// Bytes in one packed segment, about.
const SEGMENT_BYTES: usize = 256 << 10;
/// Segments of one call: its record names them all, and must fit the store.
const SEGMENTS: usize = 50_000;
/// Segments of one upload that are being written at once.
const WRITES_AT_ONCE: usize = 6;

/// Cancels what has not started of a call, if dropped before it is let go.
struct Leaving {
    actor: Addr<FunctionActor>,
    call: Option<CallId>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            let actor = self.actor.clone();
            actix::spawn(async move { drop(actor.send(Pass(Event::Abandon { call })).await) });
        }
    }
}

fn opening(kind: CallKind, call: CallId, inputs: Inputs, terms: &Terms, digest: [u8; 32]) -> Box<Opening> {
    let verb = match kind {
        CallKind::Invoke => "invoke",
        CallKind::Spawn => "spawn",
        CallKind::Map => "map",
        CallKind::SpawnMap => "spawn_map",
    };
    Box::new(Opening {
        call,
        kind,
        inputs,
        traceparent: terms.traceparent.as_deref().unwrap_or_default().into(),
        key: terms.key.as_ref().map(|key| (format!("{verb} {key}"), digest)),
        fail_fast: FailFast::No,
        discard_outputs: false,
    })
}

fn digest(terms: &Terms, body: &[u8]) -> [u8; 32] {
    if terms.key.is_some() { Sha256::digest(body).into() } else { [0; 32] }
}

impl Api {
    fn trace(&self, call: CallId, opening: &Opening) {
        if let Some(tracer) = &self.env.telemetry.tracer {
            tracer.parent(call, &opening.traceparent);
        }
    }

    async fn open(
        &self,
        actor: &Addr<FunctionActor>,
        key: &FunctionKey,
        opening: Box<Opening>,
        watcher: Option<mpsc::Sender<Update>>,
    ) -> Result<CallId, Refusal> {
        let asked = opening.call;
        self.trace(asked, &opening);
        let opened = actor.send(Open { opening, watcher }).await.map_err(|_| self.gone(key)).flatten();
        if let Some(tracer) = self.env.telemetry.tracer.as_ref().filter(|_| opened != Ok(asked)) {
            tracer.forget(asked);
        }
        opened
    }

    /// One input; waits for its end. A client that goes away cancels it if it has not started, unless a key makes it repeatable.
    pub async fn invoke(
        self: &Arc<Self>,
        key: &FunctionKey,
        input: Bytes,
        terms: &Terms,
    ) -> Result<EndedView, Refusal> {
        self.must_have_room(key.place())?;
        let actor = self.actor(key)?;
        let asked = mint_call(key);
        let digest = digest(terms, &input);
        let payload = self.keep(asked, 0, input).await?;
        let (watcher, mut updates) = mpsc::channel(4);
        let inputs = Inputs::Here(vec![payload]);
        let opening = opening(CallKind::Invoke, asked, inputs, terms, digest);
        let mut leaving = Leaving { actor: actor.clone(), call: terms.key.is_none().then_some(asked) };
        let opened = self.open(&actor, key, opening, Some(watcher)).await;
        let call = match opened {
            Ok(call) => call,
            Err(refusal) => {
                leaving.call = None;
                return Err(refusal);
            }
        };
        if call != asked {
            let outcome = self.await_single(&actor, call).await?.outcome;
            return Ok(EndedView { call_id: call, outcome });
        }
        let entry = loop {
            match updates.recv().await {
                Some(Update::Ended(entries)) => break entries.first().cloned(),
                Some(_) => {}
                None => break None,
            }
        };
        leaving.call = None;
        let entry = entry
            .ok_or_else(|| Refusal::new(Code::Unavailable, "the scheduler is stopping; try again when it is back"))?;
        Ok(EndedView { call_id: call, outcome: entry.outcome })
    }

    /// The end of a call of one input that another request made.
    async fn await_single(self: &Arc<Self>, actor: &Addr<FunctionActor>, call: CallId) -> Result<Entry, Refusal> {
        let (watcher, mut updates) = mpsc::channel(4);
        if actor.send(Watch { call, watcher }).await == Ok(true) {
            while let Some(update) = updates.recv().await {
                if let Update::Ended(entries) = update
                    && let Some(entry) = entries.first()
                {
                    return Ok(entry.clone());
                }
            }
        }
        let stored = self.stored_call(call).await?;
        let none = || Refusal::new(Code::Unavailable, format!("the end of call {call} is not known yet; try again"));
        self.outcome_of(&stored, 0).await?.ok_or_else(none)
    }

    /// The bytes of a payload.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn bytes_of(&self, payload: &Payload) -> Result<Bytes, Refusal> {
        match &payload.body {
            Body::Inline(bytes) => Ok(bytes.clone()),
            Body::Blob(_) => self.blobs.fetch(payload).await.map_err(super::blob_refusal),
        }
    }

    /// One input; answers once it is durable.
    pub async fn spawn(&self, key: &FunctionKey, input: Bytes, terms: &Terms) -> Result<CallId, Refusal> {
        self.spawn_as(mint_call(key), key, input, terms).await
    }

    /// The same as a call of this id.
    pub async fn spawn_as(
        &self,
        call: CallId,
        key: &FunctionKey,
        input: Bytes,
        terms: &Terms,
    ) -> Result<CallId, Refusal> {
        self.must_have_room(key.place())?;
        let actor = self.actor(key)?;
        let digest = digest(terms, &input);
        let payload = self.keep(call, 0, input).await?;
        let opening = opening(CallKind::Spawn, call, Inputs::Here(vec![payload]), terms, digest);
        self.open(&actor, key, opening, None).await
    }

    /// Begins an upload of many inputs.
    pub async fn upload(&self, key: &FunctionKey, terms: Terms) -> Result<Upload<'_>, Refusal> {
        self.must_have_room(key.place())?;
        self.ask(key, |_| ()).await?;
        Ok(Upload {
            api: self,
            env: self.home(key.place())?,
            key: key.clone(),
            digest: terms.key.is_some().then(Sha256::new),
            terms,
            call: mint_call(key),
            segments: Vec::new(),
            payloads: Vec::new(),
            bytes: 0,
            count: 0,
            writes: FuturesUnordered::new(),
            accepted: false,
        })
    }

    /// Opens a map. Its news come by the receiver; its inputs go by [`Mapping`].
    pub async fn map(
        &self,
        key: &FunctionKey,
        terms: &Terms,
        fail_fast: FailFast,
        outputs: bool,
    ) -> Result<(Mapping, mpsc::Receiver<Update>), Refusal> {
        self.must_have_room(key.place())?;
        let actor = self.actor(key)?;
        let call = mint_call(key);
        let (watcher, updates) = mpsc::channel(WATCH_BACKLOG);
        let mut opening = opening(CallKind::Map, call, Inputs::Later, terms, [0; 32]);
        opening.fail_fast = fail_fast;
        opening.discard_outputs = !outputs;
        let leaving = Leaving { actor: actor.clone(), call: Some(call) };
        self.open(&actor, key, opening, Some(watcher)).await?;
        Ok((Mapping { call, leaving }, updates))
    }

    /// A map's input, as it travels.
    pub async fn map_payload(&self, call: CallId, index: u64, bytes: Bytes) -> Result<Payload, Refusal> {
        self.keep(call, index, bytes).await
    }
}

/// A map under way. Dropped before its end, it cancels what has not started.
pub struct Mapping {
    /// The call.
    pub call: CallId,
    leaving: Leaving,
}

impl Mapping {
    async fn pass(&self, event: Event) -> Result<(), Refusal> {
        let gone = |_| Refusal::new(Code::Unavailable, "the function is gone");
        self.leaving.actor.send(Pass(event)).await.map_err(gone)?
    }

    /// Sends inputs; there must be credit for them.
    pub async fn send(&self, payloads: Vec<Payload>) -> Result<(), Refusal> {
        self.pass(Event::Arrive { call: self.call, payloads }).await
    }

    /// All inputs were sent.
    pub async fn close(&self) -> Result<(), Refusal> {
        self.pass(Event::Close { call: self.call }).await
    }

    /// The client has taken so many outcomes.
    pub async fn collect(&self, count: u64) -> Result<(), Refusal> {
        self.pass(Event::Collect { call: self.call, count }).await
    }

    /// It ended: nothing is left to cancel.
    pub fn ended(&mut self) {
        self.leaving.call = None;
    }
}

type Write = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// An upload of many inputs: written in packed segments while it comes, accepted as a whole or not at all.
pub struct Upload<'a> {
    api: &'a Api,
    env: Arc<Env>,
    key: FunctionKey,
    terms: Terms,
    digest: Option<Sha256>,
    call: CallId,
    segments: Vec<Segment>,
    payloads: Vec<Payload>,
    bytes: usize,
    count: u64,
    writes: FuturesUnordered<Write>,
    accepted: bool,
}

impl Upload<'_> {
    /// Adds one input.
    pub async fn push(&mut self, input: Bytes) -> Result<(), Refusal> {
        let limit = self.api.config.limits.pending_background;
        if self.count >= limit {
            return Err(Refusal::exhausted(
                format!(
                    "a function takes at most {limit} pending inputs from spawn and spawn_map, this request brings more; nothing was accepted"
                ),
                1,
            ));
        }
        if let Some(digest) = &mut self.digest {
            digest.update(&input);
            digest.update(b"\n");
        }
        self.bytes += input.len();
        let payload = self.api.keep(self.call, self.count, input).await?;
        self.payloads.push(payload);
        self.count += 1;
        if self.payloads.len() == SEGMENT_INPUTS || self.bytes >= SEGMENT_BYTES {
            self.write_segment().await?;
        }
        Ok(())
    }

    /// Bytes of inputs that are not on their way into the store.
    pub fn held(&self) -> usize {
        self.bytes + self.writes.len() * SEGMENT_BYTES
    }

    async fn write_segment(&mut self) -> Result<(), Refusal> {
        if self.segments.len() == SEGMENTS {
            let detail = format!(
                "one request brings at most {} MiB of small inputs; send them as several",
                (SEGMENTS * SEGMENT_BYTES) >> 20
            );
            return Err(Refusal::new(Code::PayloadTooLarge, detail));
        }
        self.api.must_have_room(self.key.place())?;
        let number = self.segments.len() as u32;
        let count = self.payloads.len() as u32;
        self.segments.push(Segment { number, first: self.count - u64::from(count), count });
        let value = stored::encode(&self.payloads);
        self.payloads.clear();
        self.bytes = 0;
        let committer = self.env.committer.clone();
        let change = Change::Put(layout::segment(self.call, number), value);
        self.writes.push(Box::pin(async move { committer.write(vec![change]).await }));
        while self.writes.len() > WRITES_AT_ONCE {
            self.await_write().await?;
        }
        Ok(())
    }

    async fn await_write(&mut self) -> Result<(), Refusal> {
        self.writes.next().await.unwrap_or(Ok(())).map_err(store_refusal)
    }

    /// All inputs came: accepts the call. Answers its id and how many inputs it has, once all are durable.
    pub async fn finish(mut self) -> Result<(CallId, u64), Refusal> {
        if !self.payloads.is_empty() {
            self.write_segment().await?;
        }
        while !self.writes.is_empty() {
            self.await_write().await?;
        }
        let digest = self.digest.take().map_or([0; 32], |d| d.finalize().into());
        let actor = self.api.actor(&self.key)?;
        let segments = std::mem::take(&mut self.segments);
        let numbers = segments.len();
        let inputs = Inputs::Stored(segments);
        let opening = opening(CallKind::SpawnMap, self.call, inputs, &self.terms, digest);
        // From here on it may be accepted, also if the client does not wait for the answer.
        self.accepted = true;
        let opened = self.api.open(&actor, &self.key, opening, None).await;
        let refused = match &opened {
            Ok(call) => *call != self.call,
            // Whether a scheduler that stops has accepted it is not known; its next start is.
            Err(refusal) => refusal.code != Code::Unavailable,
        };
        if refused {
            self.discard(numbers);
        }
        Ok((opened?, self.count))
    }

    /// What was written of a refused upload goes again.
    fn discard(&mut self, segments: usize) {
        self.accepted = true;
        let changes: Vec<_> =
            (0..segments).map(|number| Change::Delete(layout::segment(self.call, number as u32))).collect();
        let (committer, blobs, call) = (self.env.committer.clone(), self.api.blobs.clone(), self.call);
        let writes = std::mem::take(&mut self.writes);
        actix::spawn(async move {
            let _ = writes.collect::<Vec<_>>().await;
            // A leftover is removed by the next start.
            let _ = committer.write(changes).await;
            let _ = blobs.forget(call).await;
        });
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if !self.accepted {
            self.discard(self.segments.len());
        }
    }
}

/// Shared by doors: a handle on the verbs.
pub type SharedApi = Arc<Api>;
