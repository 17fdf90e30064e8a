//! KEDA's external scaler: tells a cluster's autoscaler what a function wants, and pushes when it wakes (SPEC §3.7, §3.9).
//! What a trigger may ask for is in `trigger`.

mod doors;
mod trigger;

use crate::{
    api::{Api, owner::LOOK as PAUSE},
    config::SchedulerConfig,
    strangers::{self, Caller},
    tls,
};
use capstan_common::refusal::Refusal;
use doors::{Asked, Doors, Here, is_passed, pass, pass_once};
use proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
    external_scaler_client::ExternalScalerClient,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService, transport::Channel};
use trigger::{Metric, Trigger};

/// KEDA's messages.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("externalscaler");
}

/// How often a stream looks without being told that anything has changed: news can be missed by a slow listener.
const LOOK: Duration = Duration::from_secs(5);

/// Bytes of one question.
const REQUEST_BYTES: usize = 64 << 10;

/// Serves KEDA, encrypted where that is set. Answers the address.
///
/// # Errors
/// The address is taken, or certificates cannot be read or made.
pub async fn serve(api: Arc<Api>, config: &SchedulerConfig, listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    let authority = api.authority().filter(|_| config.keda_tls);
    anyhow::ensure!(authority.is_some() || !config.keda_tls, "there is no authority to sign KEDA's certificate");
    let doors = Arc::new(Doors::new(api.clone(), authority.map(tls::keda::client).transpose()?));
    let encrypted = authority.map(|authority| tls::keda::server(authority, config)).transpose()?;
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let stopping = api.stopping().clone();
    let functions = config.here.as_ref().map(|here| here.users).filter(|_| listen.ip().is_loopback());
    tokio::spawn(async move {
        // Who has sent a request that can be read is no stranger: whom to let in is the handshake's to say.
        let known = |request: Request<()>| {
            if let Some(caller) = Caller::of(&request) {
                caller.introduce();
            }
            Ok(request)
        };
        let scaler = ExternalScalerServer::new(Scaler { doors, api }).max_decoding_message_size(REQUEST_BYTES);
        let server =
            strangers::bounded(tonic::transport::Server::builder()).add_service(InterceptedService::new(scaler, known));
        let incoming = strangers::incoming(listener, functions);
        let stopped = stopping.cancelled();
        let ended = match encrypted {
            Some(config) => server.serve_with_incoming_shutdown(tls::incoming(incoming, config), stopped).await,
            None => server.serve_with_incoming_shutdown(incoming, stopped).await,
        };
        if let Err(error) = ended {
            tracing::error!(error = &error as &dyn std::error::Error, "KEDA is not served any more");
        }
    });
    Ok(address)
}

struct Scaler {
    api: Arc<Api>,
    doors: Arc<Doors>,
}

fn status(refusal: Refusal) -> Status {
    use capstan_common::refusal::Code;
    match refusal.code {
        Code::NotFound => Status::not_found(refusal.detail),
        Code::Invalid => Status::invalid_argument(refusal.detail),
        _ => Status::unavailable(refusal.detail),
    }
}

impl Scaler {
    /// Whether it is active, asked of whoever answers for it.
    async fn look(
        &self,
        trigger: &Trigger,
        passed: bool,
        object: &ScaledObjectRef,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let ask = |mut owner: ExternalScalerClient<Channel>| {
            let object = object.clone();
            async move { owner.is_active(pass_once(object)).await }
        };
        match self.doors.ask(&trigger.subject, passed, ask).await? {
            Asked::There(answer) => Ok(answer),
            Asked::Here(here) => {
                let result = is_active(&self.api, trigger, &here).await?;
                Ok(Response::new(IsActiveResponse { result }))
            }
        }
    }
}

/// A metric's value for who is asked about.
async fn value(api: &Api, trigger: &Trigger, here: &Here, metric: Metric) -> Result<f64, Status> {
    let stats = async |function| api.stats(function).await.map_err(status);
    Ok(match (metric, &here.function) {
        (Metric::RequiredNodes, function) => {
            api.required_nodes(function.as_ref(), trigger.node).await.map_err(status)? as f64
        }
        (Metric::DesiredReplicas, Some(function)) => f64::from(stats(function).await?.desired),
        (Metric::Backlog, Some(function)) => stats(function).await?.backlog as f64,
        (Metric::Running, Some(function)) => stats(function).await?.running as f64,
        (metric, None) => return Err(trigger::needs_function(metric)),
    })
}

async fn is_active(api: &Api, trigger: &Trigger, here: &Here) -> Result<bool, Status> {
    let Some(function) = &here.function else {
        return Ok(value(api, trigger, here, Metric::RequiredNodes).await? > 0.0);
    };
    let stats = api.stats(function).await.map_err(status)?;
    Ok(stats.desired > 0 || stats.backlog > 0 || stats.running > 0)
}

fn spec(trigger: &Trigger) -> GetMetricSpecResponse {
    let spec = MetricSpec {
        metric_name: trigger.metric.name().into(),
        // The whole number is for clients that do not know the other; it must be above zero too.
        target_size: (trigger.target.ceil() as i64).max(1),
        target_size_float: trigger.target,
    };
    GetMetricSpecResponse { metric_specs: vec![spec] }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = Answers<IsActiveResponse>;
    type StreamMetricSpecStream = Answers<GetMetricSpecResponse>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        self.look(&Trigger::read(request.get_ref())?, is_passed(&request), request.get_ref()).await
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = Trigger::read(request.get_ref())?;
        let passed = is_passed(&request);
        let object = request.into_inner();
        // What nobody knows is refused at once, and not by a stream that ends: whoever passed the question on goes on asking.
        self.look(&trigger, passed, &object).await?;
        let (api, doors) = (self.api.clone(), self.doors.clone());
        // Listened to before the first look: what changes in between is not missed.
        let mut news = api.telemetry().events.listen();
        let mut told = None;
        let stream = async_stream::try_stream! {
            loop {
                let ask = |mut owner: ExternalScalerClient<Channel>| {
                    let object = object.clone();
                    async move { owner.stream_is_active(pass(object)).await }
                };
                // Each time: another scheduler may own it by now.
                let looked = match doors.ask(&trigger.subject, passed, ask).await? {
                    Asked::Here(here) => is_active(&api, &trigger, &here).await?,
                    Asked::There(answers) => {
                        let mut answers = answers.into_inner();
                        loop {
                            let answer = tokio::select! {
                                answer = answers.message() => answer,
                                () = api.stopping().cancelled() => return,
                            };
                            // However it ends: whoever owns the function then is asked.
                            let Ok(Some(IsActiveResponse { result })) = answer else { break };
                            if told.replace(result) != Some(result) {
                                yield IsActiveResponse { result };
                            }
                        }
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                if told.replace(looked) != Some(looked) {
                    yield IsActiveResponse { result: looked };
                }
                // Whatever happened: the function is looked at again.
                let waited = tokio::select! {
                    waited = tokio::time::timeout(LOOK, news.recv()) => waited,
                    () = api.stopping().cancelled() => return,
                };
                if matches!(waited, Ok(Err(tokio::sync::broadcast::error::RecvError::Closed))) {
                    return;
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        Ok(Response::new(spec(&Trigger::read(request.get_ref())?)))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let passed = is_passed(&request);
        let asked = request.into_inner();
        let object = asked.scaled_object_ref.as_ref();
        let trigger = Trigger::read(object.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?)?;
        let ask = |mut owner: ExternalScalerClient<Channel>| {
            let asked = asked.clone();
            async move { owner.get_metrics(pass_once(asked)).await }
        };
        let here = match self.doors.ask(&trigger.subject, passed, ask).await? {
            Asked::There(answer) => return Ok(answer),
            Asked::Here(here) => here,
        };
        let metric = if asked.metric_name.is_empty() { trigger.metric } else { Metric::read(&asked.metric_name)? };
        let value = value(&self.api, &trigger, &here, metric).await?;
        let metric_name = metric.name().into();
        let value = MetricValue { metric_name, metric_value: value.ceil() as i64, metric_value_float: value };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        let spec = spec(&Trigger::read(request.get_ref())?);
        let stopping = self.api.stopping().clone();
        // A trigger's metadata does not change while its stream is open: the specs are sent once.
        let stream = async_stream::stream! {
            yield Ok(spec);
            stopping.cancelled().await;
        };
        Ok(Response::new(Box::pin(stream)))
    }
}
