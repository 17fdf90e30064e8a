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

use super::{calls, functions::used, problem::Problem};
use crate::api::Api;
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
    identity,
    refusal::{Code, Refusal},
};
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::percent_decode_str;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    io,
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

/// Connections to containers and other schedulers, of one thread of the server.
#[derive(Clone)]
pub struct Proxy {
    /// Sends requests.
    pub client: Client<HttpsConnector<HttpConnector>, Body>,
    /// Whether schedulers are spoken to in no other way than encrypted.
    encrypted: bool,
}

impl Proxy {
    /// Other schedulers must show whom `trusted` trusts, whatever their address; containers are on their workers' own machines.
    /// `encrypted` says whether schedulers are spoken to in no other way.
    pub fn new(trusted: &ClientConfig, encrypted: bool) -> Self {
        let connector = HttpsConnectorBuilder::new().with_tls_config(trusted.clone()).https_or_http();
        let connector = match ServerName::try_from(identity::SCHEDULER) {
            Ok(name) => connector.with_server_name_resolver(FixedServerNameResolver::new(name)),
            Err(_) => connector,
        };
        let mut plain = HttpConnector::new();
        plain.set_nodelay(true);
        plain.enforce_http(false);
        plain.set_connect_timeout(Some(CONNECT));
        let connector = connector.enable_http1().wrap_connector(plain);
        Self { client: Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector), encrypted }
    }

    /// Whether a scheduler at this address may be told what clients say, tokens among it.
    pub fn may_tell(&self, peer: &str) -> bool {
        !self.encrypted || peer.starts_with("https://")
    }
}

/// Passes a request on to a container of its function, and the answer back.
pub async fn web(
    api: web::Data<Api>,
    proxy: web::Data<Proxy>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    if matches!(*request.method(), Method::TRACE | Method::CONNECT) {
        let detail = format!("{} is not passed on", request.method());
        return Err(Problem::new(Code::MethodNotAllowed, detail));
    }
    // As the extractor of the other routes does it: here a part may be missing.
    let part = |name| {
        let written = request.match_info().get(name).unwrap_or_default();
        percent_decode_str(written).decode_utf8_lossy().into_owned()
    };
    let key = used(&api, &(part("ns"), part("fn"))).await?;
    let asked = Asked::of(&request, payload, api.config().tokens.is_empty())?;
    let traceparent = calls::terms(&request).ok().and_then(|terms| terms.traceparent);
    for tried in 1.. {
        let (mut visit, mut place) = api.visit(&key, traceparent.clone()).await?;
        let deadline = Instant::now() + place.timeout;
        let sent = tokio::select! {
            sent = proxy.client.request(asked.request(&place, &visit)?) => sent,
            why = answer::broken(&mut place.expelled, deadline, place.timeout) => {
                visit.broke(&why);
                return Err(failed(why));
            }
        };
        match sent {
            Ok(response) => return answer::answer(response, asked, visit, place, deadline).await.map_err(failed),
            Err(error) => {
                // Its container's end, which is heard of a moment later, says more, and frees the way for another one.
                let ended = tokio::time::timeout(END, &mut place.expelled).await.ok().and_then(Result::ok);
                // Nothing was sent: another container takes the request.
                if error.is_connect() && tried < TRIES {
                    visit.retract();
                    continue;
                }
                let why = ended.unwrap_or_else(|| Refusal::new(Code::FunctionFailed, told(&error)));
                visit.broke(&why);
                return Err(failed(why));
            }
        }
    }
    Err(Problem::new(Code::Unavailable, "no container could be reached"))
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
fn failed(why: Refusal) -> Problem {
    let kind = match why.code {
        Code::FunctionTimeout => "FunctionTimeout",
        Code::FunctionFailed => "WebRequest",
        _ => return why.into(),
    };
    let error = serde_json::json!({"type": kind, "message": why.detail, "traceback": ""});
    Problem::with(why, "error", error)
}
