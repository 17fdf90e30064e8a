//! The reverse proxy to functions' servers: bodies stream both ways as they come, and WebSockets pass through.

mod answer;
mod asked;

/// What every proxy needs.
pub mod pass {
    pub use super::{
        OWN,
        answer::{begin, streamed, tunnel},
        asked::{Upload, nothing},
    };
}

use super::{
    calls,
    functions::instance_of,
    gate::{Gate, Visitor},
    problem::Problem,
};
use crate::{api::Api, route::connector};
use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        Method,
        header::{self, HeaderName},
    },
    web,
};
use asked::Asked;
use bytes::Bytes;
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
};
use capstan_net::ServerStream;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use rustls::ClientConfig;
use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// How often a request looks for another container when one is gone before it could be reached.
const TRIES: u32 = 3;
/// How long a broken connection waits for its container's end.
const END: Duration = Duration::from_millis(200);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an idle connection to a container is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Headers that concern one connection only (RFC 9110, section 7.6.1), or that are set anew.
pub const OWN: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];
/// Carries a token where `Authorization` is meant for the container.
pub const TOKEN_HEADER: &str = "capstan-token";

/// A request's body as it is passed on.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Connects to containers' servers, which are known by their addresses.
#[derive(Clone, Copy)]
struct ToContainer;

impl tower::Service<hyper::Uri> for ToContainer {
    type Response = TokioIo<ServerStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: hyper::Uri) -> Self::Future {
        let host = uri.host().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        let address = host.zip(uri.port_u16());
        Box::pin(async move {
            let (host, port) = address.ok_or_else(|| io::Error::other("a container has no such address"))?;
            let connected = tokio::time::timeout(CONNECT, ServerStream::connect(host, port)).await;
            connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(TokioIo::new)
        })
    }
}

/// What a function's page may do beside the API: all but act as a page of the API's own.
const SANDBOX: &str = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts";

/// A page on the API's own origin is taken for a stranger by the browser: its scripts could otherwise ask an open door as the
/// operator. On a door of its own (`web_listen`) a page is itself.
fn kept_out(mut answer: HttpResponse, request: &HttpRequest) -> HttpResponse {
    if request.app_data::<web::Data<super::Door>>().is_none_or(|door| ***door == super::Door::Rest) {
        let policy = header::HeaderValue::from_static(SANDBOX);
        answer.headers_mut().append(header::CONTENT_SECURITY_POLICY, policy);
    }
    answer
}

/// Connections to containers and other schedulers, of one thread of the server.
#[derive(Clone)]
pub struct Proxy {
    /// Sends requests to other schedulers.
    pub client: Client<HttpsConnector<HttpConnector>, Body>,
    /// Sends requests to containers.
    containers: Client<ToContainer, Body>,
    /// Whether schedulers are spoken to in no other way than encrypted.
    encrypted: bool,
}

impl Proxy {
    /// Other schedulers must show whom `trusted` trusts, whatever their address; containers are on their workers' own machines.
    /// `encrypted` says whether schedulers are spoken to in no other way.
    pub fn new(trusted: &ClientConfig, encrypted: bool) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE);
        Self { client: builder.build(connector(trusted)), containers: builder.build(ToContainer), encrypted }
    }

    /// Whether a scheduler at this address may be told what clients say, tokens among it.
    pub fn may_tell(&self, peer: &str) -> bool {
        !self.encrypted || peer.starts_with("https://")
    }
}

/// Passes a request on to a container of its function, and the answer back.
pub async fn web(
    api: web::Data<Api>,
    (proxy, gate): (web::Data<Proxy>, web::Data<Gate>),
    request: HttpRequest,
    path: web::Path<Function>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    if matches!(*request.method(), Method::TRACE | Method::CONNECT) {
        let detail = format!("{} is not passed on", request.method());
        return Err(Problem::new(Code::MethodNotAllowed, detail));
    }
    let key = api.resolve(instance_of(&(path.ns.clone(), path.name.clone()))?).await?;
    api.function(&key).await?;
    gate.may_pass(&key)?;
    let asked = Asked::of(&request, payload, Visitor::of(&request).spent, api.config())?;
    let traceparent = calls::terms(&request).ok().and_then(|terms| terms.traceparent);
    // A connection that was kept may be closed just when it is used again: what changes nothing is sent once more.
    let mut again = asked.is_repeatable();
    for tried in 1.. {
        let (mut visit, mut place) = match api.visit(&key, traceparent.clone()).await {
            Ok(visit) => visit,
            Err(why) => return Err(failed(&api, &key, why).await),
        };
        let deadline = Instant::now() + place.timeout;
        let sent = tokio::select! {
            sent = proxy.containers.request(asked.request(&place, &visit)?) => sent,
            why = answer::broken(&mut place.expelled, deadline, place.timeout) => {
                visit.broke(&why);
                return Err(failed(&api, &key, why).await);
            }
        };
        match sent {
            Ok(response) => {
                return match answer::answer(response, asked, visit, place, deadline).await {
                    Ok(answer) => Ok(kept_out(answer, &request)),
                    Err(why) => Err(failed(&api, &key, why).await),
                };
            }
            Err(error) => {
                // Its container's end, which is heard of a moment later, says more, and frees the way for another one.
                let ended = tokio::time::timeout(END, &mut place.expelled).await.ok().and_then(Result::ok);
                // Nothing was sent: another container takes the request.
                if error.is_connect() && tried < TRIES {
                    visit.retract();
                    continue;
                }
                if ended.is_none() && std::mem::take(&mut again) {
                    visit.retract();
                    continue;
                }
                let why = ended.unwrap_or_else(|| Refusal::new(Code::FunctionFailed, told(&error)));
                visit.broke(&why);
                return Err(failed(&api, &key, why).await);
            }
        }
    }
    Err(Problem::new(Code::Unavailable, "no container could be reached"))
}

/// The function that a path names, as the other routes read it.
#[derive(serde::Deserialize)]
pub struct Function {
    ns: String,
    #[serde(rename = "fn")]
    name: String,
}

/// The whole chain of an error's reasons.
fn told(error: &Error) -> String {
    let mut text = format!("the function's server did not answer: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        text.push_str(&format!(": {reason}"));
        source = reason.source();
    }
    text
}

/// The answer of a request that has none of its container's, in the form of a failed invoke.
async fn failed(api: &Api, key: &FunctionKey, why: Refusal) -> Problem {
    let of = |kind| serde_json::json!({"type": kind, "message": why.detail, "traceback": ""});
    let error = match why.code {
        Code::FunctionTimeout => of("FunctionTimeout"),
        Code::FunctionFailed => of("WebRequest"),
        _ => serde_json::Value::Null,
    };
    let waiting = if calls::gives_up(why.code) { api.waiting(key).await.ok().flatten() } else { None };
    calls::told(why, error, waiting)
}
