//! How many nodes Capstan itself needs: for autoscalers that add and remove the machines its workers run on (SPEC §3.9).

use super::Api;
use crate::actor::autoscaler::Nodes;
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
    resource::Amount,
};

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

    /// The function of this scheduler that serves a model in a namespace: the first by name.
    pub async fn serving(&self, namespace: &str, model: &str) -> Option<FunctionKey> {
        for (key, _) in self.env.registry.functions() {
            if &*key.namespace == namespace && self.serves(&key, model).await {
                return Some(key);
            }
        }
        None
    }

    /// Whether a function of this scheduler serves a model.
    pub async fn serves(&self, function: &FunctionKey, model: &str) -> bool {
        let of = self.ask(function, |core| core.deployment().spec.model_id.clone()).await;
        of.is_ok_and(|of| of.as_deref() == Some(model))
    }
}
