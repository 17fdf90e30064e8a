//! The other schedulers' doors for KEDA: any scheduler tells it of any function.

use super::proto::external_scaler_client::ExternalScalerClient;
use crate::{
    api::{
        Api,
        owner::{LOOK, Owner, PATIENCE},
    },
    cluster::Peer,
    shard::Guest,
};
use capstan_common::id::FunctionKey;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tonic::{
    Code, Extensions, Request, Status,
    metadata::{MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

/// Marks a question that another scheduler has passed on.
const FORWARDED: &str = "capstan-forwarded";
/// How long an owner that has fallen silent is still believed to be there.
const SILENCE: Duration = Duration::from_secs(2);

enum Door {
    Here(Guest),
    There(ExternalScalerClient<Channel>),
}

/// Who answers for a function.
pub enum Asked<A> {
    /// This scheduler, for as long as the guest lives.
    Here(Guest),
    /// Its owner, with this.
    There(A),
}

/// Connections to the other schedulers' doors, made when they are needed.
pub struct Doors {
    api: Arc<Api>,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Doors {
    /// None yet.
    pub fn new(api: Arc<Api>) -> Self {
        Self { api, channels: Mutex::default() }
    }

    /// Finds who answers for a function, and asks if that is another scheduler: the next owner, if the one before does not answer.
    /// A question that was `passed` on is not passed on again.
    ///
    /// # Errors
    /// Unavailable: the owner is being replaced, or serves KEDA to nobody else. Otherwise what the owner refuses.
    pub async fn ask<A, F>(
        &self,
        function: &FunctionKey,
        passed: bool,
        question: impl Fn(ExternalScalerClient<Channel>) -> F,
    ) -> Result<Asked<A>, Status>
    where
        F: Future<Output = Result<A, Status>> + Send,
    {
        let begun = Instant::now();
        loop {
            let owner = match self.find(function, passed).await? {
                Door::Here(guest) => return Ok(Asked::Here(guest)),
                Door::There(owner) => owner,
            };
            match question(owner).await {
                Ok(answer) => return Ok(Asked::There(answer)),
                Err(refused) if matches!(refused.code(), Code::NotFound | Code::InvalidArgument) => {
                    return Err(refused);
                }
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => tokio::time::sleep(LOOK * 10).await,
            }
        }
    }

    async fn find(&self, function: &FunctionKey, passed: bool) -> Result<Door, Status> {
        let replaced = || Status::unavailable("the scheduler that owns this function is being replaced; ask again");
        match self.api.owner(function.place()).await {
            Owner::Here(guest) => Ok(Door::Here(guest)),
            Owner::There(_) if passed => Err(replaced()),
            Owner::There(peer) => Ok(Door::There(self.client(&peer)?)),
            Owner::Nobody => Err(replaced()),
        }
    }

    fn client(&self, peer: &Peer) -> Result<ExternalScalerClient<Channel>, Status> {
        if peer.keda.is_empty() {
            return Err(Status::unavailable(format!(
                "the scheduler at {} owns this function and serves KEDA to nobody else: set keda_listen on all schedulers, to \
                 addresses that they reach",
                peer.rest
            )));
        }
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&peer.keda) {
            return Ok(ExternalScalerClient::new(channel.clone()));
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.keda));
        let endpoint = endpoint.map_err(|e| Status::internal(format!("`{}` is no address: {e}", peer.keda)))?;
        let channel = endpoint
            .connect_timeout(SILENCE)
            .http2_keep_alive_interval(SILENCE)
            .keep_alive_timeout(SILENCE)
            .tcp_nodelay(true)
            .connect_lazy();
        channels.insert(peer.keda.clone(), channel.clone());
        Ok(ExternalScalerClient::new(channel))
    }
}

/// Whether a question comes from another scheduler.
pub fn is_passed<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED)
}

/// The question as the owner gets it.
pub fn pass<T>(message: T) -> Request<T> {
    let mut metadata = MetadataMap::new();
    metadata.insert(FORWARDED, MetadataValue::from_static("1"));
    Request::from_parts(metadata, Extensions::new(), message)
}

/// The same for a question with one answer, which is not waited for without end.
pub fn pass_once<T>(message: T) -> Request<T> {
    let mut request = pass(message);
    request.set_timeout(PATIENCE);
    request
}
