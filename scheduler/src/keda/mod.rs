//! KEDA's external scaler: tells a cluster's autoscaler what a function wants, and pushes when it wakes (SPEC §3.7).
//!
//! Trigger metadata: `function` (needed), `namespace` (`default` without it), `metric` (`desired_replicas`, `backlog` or
//! `running`), `target` (a number above zero, 1 without it).

mod doors;

use crate::api::{Api, owner::LOOK as PAUSE};
use capstan_common::{id::FunctionKey, refusal::Refusal, validate};
use doors::{Asked, Doors, is_passed, pass, pass_once};
use proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
    external_scaler_client::ExternalScalerClient,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, server::TcpIncoming},
};

/// KEDA's messages.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("externalscaler");
}

/// How often a stream looks without being told that anything has changed: news can be missed by a slow listener.
const LOOK: Duration = Duration::from_secs(5);

/// Metrics that can be asked for.
const METRICS: [&str; 3] = ["desired_replicas", "backlog", "running"];

/// Serves KEDA. Answers the address.
pub async fn serve(api: Arc<Api>, listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let stopping = api.stopping().clone();
    tokio::spawn(async move {
        let service = ExternalScalerServer::new(Scaler { doors: Arc::new(Doors::new(api.clone())), api });
        // News are short: they must not wait for more to go with them.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tonic::transport::Server::builder().add_service(service);
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, stopping.cancelled()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "KEDA is not served any more");
        }
    });
    Ok(address)
}

struct Scaler {
    api: Arc<Api>,
    doors: Arc<Doors>,
}

/// What a trigger asks for.
#[derive(Clone)]
struct Trigger {
    function: FunctionKey,
    metric: String,
    target: f64,
}

fn status(refusal: Refusal) -> Status {
    use capstan_common::refusal::Code;
    match refusal.code {
        Code::NotFound => Status::not_found(refusal.detail),
        Code::Invalid => Status::invalid_argument(refusal.detail),
        _ => Status::unavailable(refusal.detail),
    }
}

fn trigger(object: &ScaledObjectRef) -> Result<Trigger, Status> {
    let given = |name: &str| object.scaler_metadata.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let wrong = |what: String| Status::invalid_argument(what);
    let function = given("function").ok_or_else(|| wrong("metadata `function` must name a function".into()))?;
    let function = validate::instance_key(given("namespace").unwrap_or("default"), function).map_err(status)?;
    let metric = given("metric").unwrap_or(METRICS[0]);
    if !METRICS.contains(&metric) {
        return Err(wrong(format!("metadata `metric` is `{metric}`, must be one of {}", METRICS.join(", "))));
    }
    let text = given("target").unwrap_or("1");
    let target = text.parse().ok().filter(|target: &f64| target.is_finite() && *target > 0.0);
    let target = target.ok_or_else(|| wrong(format!("metadata `target` is `{text}`, must be a number above zero")))?;
    Ok(Trigger { function, metric: metric.into(), target })
}

impl Scaler {
    async fn value(&self, trigger: &Trigger, metric: &str) -> Result<f64, Status> {
        let stats = self.api.stats(&trigger.function).await.map_err(status)?;
        match metric {
            "desired_replicas" => Ok(f64::from(stats.desired)),
            "backlog" => Ok(stats.backlog as f64),
            "running" => Ok(stats.running as f64),
            other => Err(Status::invalid_argument(format!("there is no metric `{other}`"))),
        }
    }
}

async fn is_active(api: &Api, function: &FunctionKey) -> Result<bool, Status> {
    let stats = api.stats(function).await.map_err(status)?;
    Ok(stats.desired > 0 || stats.backlog > 0 || stats.running > 0)
}

fn spec(trigger: &Trigger) -> GetMetricSpecResponse {
    let spec = MetricSpec {
        metric_name: trigger.metric.clone(),
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
        let trigger = trigger(request.get_ref())?;
        let ask = |mut owner: ExternalScalerClient<Channel>| {
            let object = request.get_ref().clone();
            async move { owner.is_active(pass_once(object)).await }
        };
        match self.doors.ask(&trigger.function, is_passed(&request), ask).await? {
            Asked::There(answer) => Ok(answer),
            Asked::Here(_guest) => {
                let result = is_active(&self.api, &trigger.function).await?;
                Ok(Response::new(IsActiveResponse { result }))
            }
        }
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = trigger(request.get_ref())?;
        let passed = is_passed(&request);
        let object = request.into_inner();
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
                let looked = match doors.ask(&trigger.function, passed, ask).await? {
                    Asked::Here(_guest) => is_active(&api, &trigger.function).await?,
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
        Ok(Response::new(spec(&trigger(request.get_ref())?)))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let passed = is_passed(&request);
        let asked = request.into_inner();
        let object = asked.scaled_object_ref.as_ref();
        let trigger = trigger(object.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?)?;
        let ask = |mut owner: ExternalScalerClient<Channel>| {
            let asked = asked.clone();
            async move { owner.get_metrics(pass_once(asked)).await }
        };
        let _guest = match self.doors.ask(&trigger.function, passed, ask).await? {
            Asked::There(answer) => return Ok(answer),
            Asked::Here(guest) => guest,
        };
        let metric_name = if asked.metric_name.is_empty() { trigger.metric.clone() } else { asked.metric_name };
        let value = self.value(&trigger, &metric_name).await?;
        let value = MetricValue { metric_name, metric_value: value.ceil() as i64, metric_value_float: value };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        let spec = spec(&trigger(request.get_ref())?);
        let stopping = self.api.stopping().clone();
        // A trigger's metadata does not change while its stream is open: the specs are sent once.
        let stream = async_stream::stream! {
            yield Ok(spec);
            stopping.cancelled().await;
        };
        Ok(Response::new(Box::pin(stream)))
    }
}
