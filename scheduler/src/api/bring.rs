//! What brings inputs, and what reads how they ended, verb by verb. Rights and owners are the route's.

use super::{Api, keys::Claim};
use crate::route::{Granted, Run};
use bytes::Bytes;
use capstan_common::{
    id::FunctionKey,
    input::Format,
    refusal::{Code, Refusal},
};
use capstan_verb::{
    Verb,
    call::{self, EndedView, ResultsView, SpawnedView, Terms},
    function::{self, TraceView},
    payload::Input,
};
use std::{sync::Arc, time::Duration};

/// The longest wait for results.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Results in a page, at most.
pub const RESULTS_PAGE: usize = 10_000;

impl Api {
    /// The function that inputs are for, and the claim to their key.
    pub async fn taking(
        self: &Arc<Self>,
        key: FunctionKey,
        (by, verb, terms): (&Arc<str>, &'static str, &Terms),
    ) -> Result<(FunctionKey, Option<Claim>), Refusal> {
        let key = self.resolve(key).await?;
        let claim = Claim::of(&self.keys, by, (verb, &key), terms)?;
        Ok((key, claim))
    }

    /// The bytes of an input, if they are no more than one may have.
    fn taken(&self, input: Input) -> Result<Bytes, Refusal> {
        if input.format() != Format::Json {
            let detail = format!("a function that takes {} is not known here", input.format().name());
            return Err(Refusal::new(Code::Unsupported, detail));
        }
        let (bytes, most) = (input.into_bytes(), self.config.payload_max_bytes);
        if bytes.len() > most {
            let detail = format!("an input has at most {most} bytes, this has {}", bytes.len());
            return Err(Refusal::new(Code::PayloadTooLarge, detail));
        }
        Ok(bytes)
    }
}

impl Run<call::Invoke> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<call::Invoke>) -> Result<EndedView, Refusal> {
        let call::Invoke { key, terms, input } = ask.verb.clone();
        let input = self.taken(input)?;
        let (key, claim) = self.taking(key, (&ask.by, call::Invoke::NAME, &terms)).await?;
        self.invoke(&key, input, &terms).await.inspect_err(|_| Claim::undo(&claim))
    }
}

impl Run<call::Spawn> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<call::Spawn>) -> Result<SpawnedView, Refusal> {
        let call::Spawn { key, terms, input } = ask.verb.clone();
        let input = self.taken(input)?;
        let (key, claim) = self.taking(key, (&ask.by, call::Spawn::NAME, &terms)).await?;
        let call_id = self.spawn(&key, input, &terms).await.inspect_err(|_| Claim::undo(&claim))?;
        Ok(SpawnedView { call_id })
    }
}

impl Run<call::Results> for Api {
    async fn run(self: &Arc<Self>, mut ask: Granted<call::Results>) -> Result<ResultsView, Refusal> {
        let call::Results { call, after, limit, ordered, wait_ms } = ask.verb;
        if wait_ms > 0 {
            ask.waits();
        }
        let wait = Duration::from_millis(wait_ms).min(WAIT_MAX);
        let lines = self.results(&ask.who, call, after, limit.min(RESULTS_PAGE), ordered, wait).await?;
        Ok(ResultsView { lines })
    }
}

impl Run<function::Trace> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Trace>) -> Result<TraceView, Refusal> {
        let key = self.find(ask.verb.key).await?;
        let (mut lines, next) = self.recorded(&key, ask.verb.after).await?;
        if next.is_none() {
            lines += &self.recorded_lately(&key).await?;
        }
        Ok(TraceView { lines, next })
    }
}
