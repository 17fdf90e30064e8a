//! The other schedulers' doors for KEDA: any scheduler tells it of any function.

use super::{proto::external_scaler_client::ExternalScalerClient, trigger::Subject};
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
    transport::{Channel, ClientTlsConfig, Endpoint},
};

/// Marks a question that another scheduler has passed on.
const FORWARDED: &str = "capstan-forwarded";
/// How long an owner that has fallen silent is still believed to be there.
const SILENCE: Duration = Duration::from_secs(2);

enum Door {
    Here(Guest),
    There(ExternalScalerClient<Channel>),
}

/// This scheduler answers, for as long as this lives.
pub struct Here {
    /// For which function; none: for all.
    pub function: Option<FunctionKey>,
    _guest: Option<Guest>,
}

/// Who answers.
pub enum Asked<A> {
    /// This scheduler.
    Here(Here),
    /// Its owner, with this.
    There(A),
}

/// Connections to the other schedulers' doors, made when they are needed.
pub struct Doors {
    api: Arc<Api>,
    /// How they are believed, and what they are shown, where they are encrypted.
    tls: Option<ClientTlsConfig>,
    channels: Mutex<BTreeMap<String, Channel>>,
    /// Functions of this scheduler that were found to serve models.
    serving: Mutex<BTreeMap<(String, String), FunctionKey>>,
}

impl Doors {
    /// None yet.
    pub fn new(api: Arc<Api>, tls: Option<ClientTlsConfig>) -> Self {
        Self { api, tls, channels: Mutex::default(), serving: Mutex::default() }
    }

    /// Finds who answers, and asks if that is another scheduler. A question that was `passed` on is not passed on again.
    ///
    /// # Errors
    /// As for a function. Not found: no scheduler has a function that serves the model.
    pub async fn ask<A, F>(
        &self,
        subject: &Subject,
        passed: bool,
        question: impl Fn(ExternalScalerClient<Channel>) -> F,
    ) -> Result<Asked<A>, Status>
    where
        F: Future<Output = Result<A, Status>> + Send,
    {
        match subject {
            Subject::All => Ok(Asked::Here(Here { function: None, _guest: None })),
            Subject::Function(function) => self.ask_owner(function, passed, question).await,
            Subject::Model { namespace, model } => match self.serving(namespace, model).await {
                Some(function) => self.ask_owner(&function, passed, question).await,
                None if passed => Err(unserved(namespace, model)),
                None => self.ask_all(question).await?.ok_or_else(|| unserved(namespace, model)),
            },
        }
    }

    /// The function of this scheduler that serves a model: the one that did when it was last looked for, if it still does.
    async fn serving(&self, namespace: &str, model: &str) -> Option<FunctionKey> {
        let of = (namespace.to_owned(), model.to_owned());
        let known = self.serving.lock().unwrap_or_else(PoisonError::into_inner).get(&of).cloned();
        if let Some(known) = known
            && self.api.serves(&known, model).await
        {
            return Some(known);
        }
        let found = self.api.serving(namespace, model).await;
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        match &found {
            Some(found) => drop(serving.insert(of, found.clone())),
            None => drop(serving.remove(&of)),
        }
        found
    }

    /// Asks the other schedulers, one after the other, who may know what this one does not.
    async fn ask_all<A, F>(
        &self,
        question: impl Fn(ExternalScalerClient<Channel>) -> F,
    ) -> Result<Option<Asked<A>>, Status>
    where
        F: Future<Output = Result<A, Status>> + Send,
    {
        let mut silent = None;
        for peer in self.api.peers() {
            match question(self.client(&peer)?).await {
                Ok(answer) => return Ok(Some(Asked::There(answer))),
                Err(refused) if refused.code() == Code::NotFound => {}
                Err(refused) if refused.code() == Code::InvalidArgument => return Err(refused),
                Err(error) => silent = Some(error),
            }
        }
        // Whoever did not answer may be the one that knows.
        silent.map_or(Ok(None), Err)
    }

    /// Finds who answers for a function, and asks if that is another scheduler: the next owner, if the one before does not answer.
    /// A question that was `passed` on is not passed on again.
    ///
    /// # Errors
    /// Unavailable: the owner is being replaced, or serves KEDA to nobody else. Otherwise what the owner refuses.
    async fn ask_owner<A, F>(
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
                Door::Here(guest) => {
                    let function = Some(function.clone());
                    return Ok(Asked::Here(Here { function, _guest: Some(guest) }));
                }
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
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let wrong = |error| Status::internal(format!("`{}` cannot be asked: {error}", peer.keda));
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", peer.keda)).map_err(wrong)?;
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(wrong)?;
        }
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

fn unserved(namespace: &str, model: &str) -> Status {
    Status::not_found(format!("no function of namespace `{namespace}` has the model_id `{model}`"))
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
