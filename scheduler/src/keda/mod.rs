//! KEDA's external scaler: tells a cluster's autoscaler what a function wants, and pushes when it wakes (SPEC §3.7, §3.9).
//! What a trigger may ask for is in `trigger`.

mod trigger;

use crate::{
    api::{Api, owner::LOOK as PAUSE},
    config::SchedulerConfig,
    route::{Asker, Peers, Route},
    strangers::{self, Caller},
    tls,
};
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
};
use capstan_verb::{
    access::{Role, Subject},
    cluster, function, model,
};
use proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};
use trigger::{Asked, Metric, Trigger};

/// KEDA's messages.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("externalscaler");
}

/// How long one wait for a change is: then it is asked again, of whoever owns the function by then.
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
    let peers = Peers::new(&tls::rest::client(api.authority())?, config.rest_tls);
    let scaler = Arc::new(Scaler { route: Route::new(api.clone(), peers), api: api.clone() });
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
        let scaler = ExternalScalerServer::new(scaler).max_decoding_message_size(REQUEST_BYTES);
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
    route: Route,
}

fn status(refusal: Refusal) -> Status {
    match refusal.code {
        Code::NotFound => Status::not_found(refusal.detail),
        Code::Invalid => Status::invalid_argument(refusal.detail),
        _ => Status::unavailable(refusal.detail),
    }
}

impl Scaler {
    /// Who asks: this scheduler, for whoever was let in at the door. It may look.
    fn asker(&self) -> Asker {
        let subject = Subject { role: Role::Read, namespaces: None };
        Asker { subject, by: "".into(), token: Some(self.api.scheduler_token().into()), hops: 0 }
    }

    /// The function that a trigger is about; none if it is about all.
    async fn function(&self, asked: &Asked) -> Result<Option<FunctionKey>, Refusal> {
        Ok(match asked.clone() {
            Asked::All => None,
            Asked::Function(key) => Some(key),
            Asked::Model { namespace, model: model_id } => {
                Some(self.route.ask(&self.asker(), model::Serving { namespace, model_id }).await?.key)
            }
        })
    }

    /// Waits until what a trigger is about is active, or is not any more, for a while; without anything `known` it says at once.
    async fn is_active(&self, trigger: &Trigger, known: Option<bool>) -> Result<bool, Refusal> {
        let Some(key) = self.function(&trigger.asked).await? else {
            let active = self.required_nodes(None, trigger).await? > 0;
            if known == Some(active) {
                tokio::time::sleep(LOOK).await;
            }
            return Ok(active);
        };
        let wait_ms = known.map_or(0, |_| LOOK.as_millis() as u64);
        Ok(self.route.ask(&self.asker(), function::AwaitActive { key, known, wait_ms }).await?.active)
    }

    async fn required_nodes(&self, key: Option<FunctionKey>, trigger: &Trigger) -> Result<u64, Refusal> {
        let (who, node) = (self.asker(), trigger.node);
        Ok(match key {
            Some(key) => self.route.ask(&who, function::RequiredNodes { key, node }).await?.nodes,
            None => self.route.ask(&who, cluster::RequiredNodes { node }).await?.nodes,
        })
    }

    async fn value(&self, trigger: &Trigger, metric: Metric) -> Result<f64, Status> {
        let function = self.function(&trigger.asked).await.map_err(status)?;
        let key = match (function, metric) {
            (function, Metric::RequiredNodes) => {
                return Ok(self.required_nodes(function, trigger).await.map_err(status)? as f64);
            }
            (Some(key), _) => key,
            (None, metric) => return Err(trigger::needs_function(metric)),
        };
        let scaling = self.route.ask(&self.asker(), function::Scaling { key }).await.map_err(status)?;
        Ok(match metric {
            Metric::DesiredReplicas | Metric::RequiredNodes => f64::from(scaling.desired),
            Metric::Backlog => scaling.backlog as f64,
            Metric::Running => scaling.running as f64,
        })
    }
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
impl ExternalScaler for Arc<Scaler> {
    type StreamIsActiveStream = Answers<IsActiveResponse>;
    type StreamMetricSpecStream = Answers<GetMetricSpecResponse>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let trigger = Trigger::read(request.get_ref())?;
        let result = Scaler::is_active(self, &trigger, None).await.map_err(status)?;
        Ok(Response::new(IsActiveResponse { result }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = Trigger::read(request.get_ref())?;
        // What nobody knows is refused at once, and not by a stream that ends.
        let mut active = Scaler::is_active(self, &trigger, None).await.map_err(status)?;
        let scaler = self.clone();
        let stream = async_stream::try_stream! {
            yield IsActiveResponse { result: active };
            loop {
                let looked = tokio::select! {
                    looked = Scaler::is_active(&scaler, &trigger, Some(active)) => looked,
                    () = scaler.api.stopping().cancelled() => return,
                };
                match looked {
                    Ok(looked) if looked != active => {
                        active = looked;
                        yield IsActiveResponse { result: active };
                    }
                    Ok(_) => {}
                    Err(refusal) if matches!(refusal.code, Code::NotFound | Code::Invalid) => {
                        Err(status(refusal))?;
                    }
                    // Its owner is being replaced: the next one is asked.
                    Err(_) => tokio::time::sleep(PAUSE).await,
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
        let asked = request.into_inner();
        let object = asked.scaled_object_ref.as_ref();
        let trigger = Trigger::read(object.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?)?;
        let metric = if asked.metric_name.is_empty() { trigger.metric } else { Metric::read(&asked.metric_name)? };
        let value = self.value(&trigger, metric).await?;
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
