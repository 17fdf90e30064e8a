//! How many nodes Capstan itself needs: for autoscalers that add and remove the machines its workers run on (SPEC §3.9).

use super::{Api, functions::rollout_view};
use crate::actor::autoscaler::Nodes;
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
    resource::Amount,
};
use capstan_verb::function::RolloutView;
use std::{sync::PoisonError, time::Duration};
use tokio::{sync::broadcast::error::RecvError, time::Instant};

/// The longest wait for a change.
const WAIT: Duration = Duration::from_secs(30);

impl Api {
    /// Nodes that hold what a function wants, or, without one, what all functions of the cluster want and have, as far as a node
    /// can hold it. A node is as large as is said, or as the largest worker.
    ///
    /// # Errors
    /// No node of that size holds it; no size is known.
    pub async fn required_nodes(&self, function: Option<&FunctionKey>, node: Option<Amount>) -> Result<u64, Refusal> {
        let workers = self.env.registry.workers().into_iter().map(|(_, worker)| worker.capacity);
        let largest = || workers.max_by_key(|capacity| (capacity.gpus, capacity.cpu_milli, capacity.memory_mib));
        let node = node.or_else(largest).ok_or_else(|| {
            let detail = "no worker has joined yet: say how large a node is with nodeCpu and nodeMemoryMib";
            Refusal::new(Code::Invalid, detail)
        })?;
        let Some(function) = function else {
            let gone = |_| Refusal::new(Code::Unavailable, "the scheduler ends");
            return self.env.autoscaler.send(Nodes(node)).await.map_err(gone);
        };
        let (desired, one) = self.ask(function, |core| (core.stats().desired, core.deployment().spec.amount())).await?;
        match node.holds(one) {
            0 => {
                let (cores, mib, gpus) = (node.cpu_milli as f64 / 1000.0, node.memory_mib, node.gpus);
                let what = format!("does not hold a container of `{function}`");
                Err(Refusal::new(Code::Invalid, format!("a node of {cores} cores, {mib} MiB and {gpus} GPUs {what}")))
            }
            each => Ok(u64::from(desired.div_ceil(each))),
        }
    }

    /// The function of this scheduler that serves a model in a namespace: the one that did when it was last looked for, if it still
    /// does; else the first by name.
    pub async fn serving(&self, namespace: &str, model: &str) -> Option<FunctionKey> {
        let of = (namespace.to_owned(), model.to_owned());
        let known = self.models.lock().unwrap_or_else(PoisonError::into_inner).get(&of).cloned();
        if let Some(known) = known
            && self.serves(&known, model).await
        {
            return Some(known);
        }
        let mut found = None;
        for (key, _) in self.env.registry.functions() {
            if &*key.namespace == namespace && self.serves(&key, model).await {
                found = Some(key);
                break;
            }
        }
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        match &found {
            Some(found) => drop(models.insert(of, found.clone())),
            None => drop(models.remove(&of)),
        }
        found
    }

    /// Whether a function wants containers, or has inputs that wait or run.
    pub async fn is_active(&self, key: &FunctionKey) -> Result<bool, Refusal> {
        let stats = self.stats(key).await?;
        Ok(stats.desired > 0 || stats.backlog > 0 || stats.running > 0)
    }

    /// Waits until that is not as it was known, or until the time is over. What changes is told of by events; now and then it is looked
    /// again, for a slow listener misses some.
    pub async fn await_active(&self, key: &FunctionKey, known: Option<bool>, most: Duration) -> Result<bool, Refusal> {
        // Listened to before the first look: what changes in between is not missed.
        let mut news = self.telemetry().events.listen(None).news;
        let until = Instant::now() + most.min(WAIT);
        loop {
            let active = self.is_active(key).await?;
            if known != Some(active) || self.stopping().is_cancelled() {
                return Ok(active);
            }
            tokio::select! {
                news = news.recv() => if matches!(news, Err(RecvError::Closed)) {
                    return Ok(active);
                },
                () = tokio::time::sleep_until(until) => return self.is_active(key).await,
                () = self.stopping().cancelled() => return Ok(active),
            }
        }
    }

    /// Waits until a revision serves, has failed to start as often as it may, or another was deployed; or until the time is over.
    pub async fn await_deployed(
        &self,
        key: &FunctionKey,
        revision: u32,
        most: Duration,
    ) -> Result<RolloutView, Refusal> {
        let mut news = self.telemetry().events.listen(None).news;
        let until = Instant::now() + most.min(WAIT);
        loop {
            let tries = self.config.limits.start_tries;
            let view = self.ask(key, move |core| rollout_view(core.rollout(), tries)).await?;
            let is_decided = view.live_revision >= revision || view.has_failed || view.revision != revision;
            if is_decided || Instant::now() >= until || self.stopping().is_cancelled() {
                return Ok(view);
            }
            tokio::select! {
                news = news.recv() => if matches!(news, Err(RecvError::Closed)) {
                    return Ok(view);
                },
                () = tokio::time::sleep_until(until) => {}
                () = self.stopping().cancelled() => return Ok(view),
            }
        }
    }

    /// Whether a function of this scheduler serves a model.
    pub async fn serves(&self, function: &FunctionKey, model: &str) -> bool {
        let of = self.ask(function, |core| core.deployment().spec.model_id.clone()).await;
        of.is_ok_and(|of| of.as_deref() == Some(model))
    }
}
