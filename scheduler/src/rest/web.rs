//! The reverse proxy to functions' servers: bodies stream both ways as they come, and WebSockets pass through.

use super::{calls, functions::used, problem::Problem};
use crate::{
    actor::function::Place,
    api::{Api, web::Visit},
};
use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{
        Method, Version,
        header::{self, HeaderMap, HeaderName},
    },
    web,
};
use bytes::Bytes;
use capstan_common::refusal::{Code, Refusal};
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
};

/// Pieces of a request's body that are read ahead of its container.
const AHEAD: usize = 8;
/// How often a request looks for another container when one is gone before it could be reached.
const TRIES: u32 = 3;
/// How long a broken connection waits for its container's end.
const END: Duration = Duration::from_millis(200);
/// How long an idle connection to a container is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Headers that concern one connection only (RFC 9110, section 7.6.1), or that are set anew.
const OWN: [HeaderName; 10] = [
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

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Connections to containers, of one thread of the server.
#[derive(Clone)]
pub struct Proxy(Client<HttpConnector, Body>);

impl Default for Proxy {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self(Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector))
    }
}

/// A request's body on its way: read from the client when the container reads it, and whole until then.
#[derive(Clone)]
struct Upload(Arc<Mutex<mpsc::Receiver<io::Result<Bytes>>>>);

impl Upload {
    /// Reads the client's body as it is taken. Ends when the last handle on it is gone.
    fn of(mut payload: web::Payload) -> Self {
        let (pieces, upload) = mpsc::channel(AHEAD);
        actix_web::rt::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = payload.next() => next,
                    () = pieces.closed() => return,
                };
                let Some(next) = next else { return };
                if pieces.send(next.map_err(io::Error::other)).await.is_err() {
                    return;
                }
            }
        });
        Self(Arc::new(Mutex::new(upload)))
    }

    fn pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        futures_util::stream::poll_fn(move |context| -> Poll<Option<io::Result<Bytes>>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(context)
        })
    }

    fn body(self) -> Body {
        BodyExt::boxed_unsync(StreamBody::new(self.pieces().map(|piece| piece.map(Frame::data))))
    }
}

/// What a client asked for, as it is sent to a container.
struct Asked {
    method: hyper::Method,
    path: String,
    headers: hyper::HeaderMap,
    upload: Option<Upload>,
    upgrades: bool,
}

impl Asked {
    fn of(request: &HttpRequest, payload: web::Payload, open: bool) -> Result<Self, Problem> {
        let upgrades = is_websocket(request.headers());
        if request.headers().contains_key(header::UPGRADE) && !upgrades {
            // A server may pass over an upgrade that it does not know (RFC 9110, section 7.8).
            tracing::debug!("only WebSockets are passed through; the request goes on without its upgrade");
        }
        let given = |name| request.headers().contains_key(name);
        let has_body = given(header::CONTENT_LENGTH) || given(header::TRANSFER_ENCODING);
        Ok(Self {
            method: hyper::Method::from_bytes(request.method().as_str().as_bytes())
                .map_err(|_| Problem::new(Code::Malformed, "the method cannot be read"))?,
            path: target(request),
            headers: headers_for(request, upgrades, open),
            upload: (has_body || upgrades).then(|| Upload::of(payload)),
            upgrades,
        })
    }

    fn request(&self, place: &Place, visit: &Visit) -> Result<hyper::Request<Body>, Problem> {
        let body = match &self.upload {
            // What follows an upgrade is no body.
            Some(upload) if !self.upgrades => upload.clone().body(),
            _ => BodyExt::boxed_unsync(http_body_util::Empty::new().map_err(|never| match never {})),
        };
        let uri = format!("http://{}{}", place.address, self.path);
        let mut request =
            hyper::Request::builder().method(self.method.clone()).uri(uri).body(body).map_err(unreadable)?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert("traceparent", visit.traceparent().parse().map_err(unreadable)?);
        let deadline = chrono::Utc::now() + place.timeout;
        let deadline = deadline.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        request.headers_mut().insert("capstan-deadline", deadline.parse().map_err(unreadable)?);
        Ok(request)
    }
}

fn unreadable(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Malformed, format!("the request cannot be passed on: {error}"))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let value = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok());
    value.is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
}

/// The path behind the function's name as it was written, and the query.
fn target(request: &HttpRequest) -> String {
    let rest = request.uri().path().splitn(5, '/').nth(4).unwrap_or_default();
    match request.uri().query() {
        Some(query) => format!("/{rest}?{query}"),
        None => format!("/{rest}"),
    }
}

/// The client's headers without those of its connection, and with what proxies add.
fn headers_for(request: &HttpRequest, upgrades: bool, open: bool) -> hyper::HeaderMap {
    let named = request.headers().get_all(header::CONNECTION).filter_map(|v| v.to_str().ok());
    let named: Vec<String> = named.flat_map(|v| v.split(',')).map(|v| v.trim().to_ascii_lowercase()).collect();
    // A token opens Capstan, and is none of the container's business.
    let spent = |name: &HeaderName| {
        let is_token = *name == header::AUTHORIZATION && !request.headers().contains_key(TOKEN_HEADER);
        name.as_str() == TOKEN_HEADER || (is_token && !open)
    };
    let mut out = hyper::HeaderMap::new();
    for (name, value) in request.headers() {
        if OWN.contains(name) || spent(name) || named.iter().any(|n| n == name.as_str()) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            hyper::header::HeaderName::from_bytes(name.as_str().as_bytes()),
            hyper::header::HeaderValue::from_bytes(value.as_bytes()),
        ) {
            out.append(name, value);
        }
    }
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = hyper::header::HeaderValue::from_str(value) {
            out.insert(name, value);
        }
    };
    if upgrades {
        set("connection", "upgrade");
        set("upgrade", "websocket");
    }
    let connection = request.connection_info().clone();
    if let Some(peer) = connection.peer_addr() {
        let before = request.headers().get("x-forwarded-for").and_then(|v| v.to_str().ok());
        let chain = before.map_or_else(|| peer.to_owned(), |before| format!("{before}, {peer}"));
        set("x-forwarded-for", &chain);
    }
    set("x-forwarded-host", connection.host());
    set("x-forwarded-proto", connection.scheme());
    let prefix: Vec<&str> = request.uri().path().splitn(5, '/').take(4).collect();
    set("x-forwarded-prefix", &prefix.join("/"));
    out
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
    let part = |name| request.match_info().get(name).unwrap_or_default().to_owned();
    let key = used(&api, &(part("ns"), part("fn"))).await?;
    if request.version() < Version::HTTP_11 && is_websocket(request.headers()) {
        return Err(Problem::new(Code::Malformed, "a WebSocket needs HTTP/1.1"));
    }
    let asked = Asked::of(&request, payload, api.config().tokens.is_empty())?;
    let traceparent = calls::terms(&request).ok().and_then(|terms| terms.traceparent);
    for tried in 1.. {
        let (mut visit, mut place) = api.visit(&key, traceparent.clone()).await?;
        let deadline = Instant::now() + place.timeout;
        let sent = tokio::select! {
            sent = proxy.0.request(asked.request(&place, &visit)?) => sent,
            why = broken(&mut place.expelled, deadline, place.timeout) => {
                visit.broke(&why);
                return Err(failed(why));
            }
        };
        match sent {
            Ok(response) => return Ok(answer(response, asked.upload, visit, place, deadline)),
            Err(error) => {
                // Its container's end, which is heard of a moment later, says more, and frees the way for another one.
                let ended = tokio::time::timeout(END, &mut place.expelled).await.ok().and_then(Result::ok);
                // Nothing was sent: another container takes the request.
                if error.is_connect() && tried < TRIES {
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

/// Comes back when the container is gone or the request's time is over.
async fn broken(expelled: &mut oneshot::Receiver<Refusal>, deadline: Instant, timeout: Duration) -> Refusal {
    let late = tokio::time::sleep_until(deadline.into());
    tokio::select! {
        why = expelled => why.unwrap_or_else(|_| Refusal::new(Code::Unavailable, "the scheduler is stopping")),
        () = late => {
            let detail = format!("the request lasted longer than timeout_s ({} s)", timeout.as_secs_f64());
            Refusal::new(Code::FunctionTimeout, detail)
        }
    }
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

type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>;

fn answer(
    response: hyper::Response<Incoming>,
    upload: Option<Upload>,
    mut visit: Visit,
    place: Place,
    deadline: Instant,
) -> HttpResponse {
    let status = response.status();
    visit.answered(status.as_u16());
    let mut builder = HttpResponse::build(
        actix_web::http::StatusCode::from_u16(status.as_u16()).unwrap_or(actix_web::http::StatusCode::BAD_GATEWAY),
    );
    let length = response.headers().get(hyper::header::CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|v| v.to_str().ok()?.parse().ok());
    copy_headers(response.headers(), &mut builder);
    builder.insert_header(("capstan-container", place.container.to_string()));
    if status == hyper::StatusCode::SWITCHING_PROTOCOLS {
        builder.upgrade("websocket");
        let pieces: Pieces = Box::pin(tunnel(response, upload));
        return builder.streaming(guarded(pieces, visit, place, deadline));
    }
    if let Some(length) = length {
        builder.no_chunking(length);
    }
    let pieces: Pieces = Box::pin(response.into_body().into_data_stream().map(|piece| piece.map_err(io::Error::other)));
    builder.streaming(guarded(pieces, visit, place, deadline))
}

fn copy_headers(headers: &hyper::HeaderMap, to: &mut HttpResponseBuilder) {
    for (name, value) in headers {
        let Ok(name) = HeaderName::from_bytes(name.as_str().as_bytes()) else { continue };
        if OWN.contains(&name) || name == header::CONTENT_LENGTH {
            continue;
        }
        if let Ok(value) = header::HeaderValue::from_bytes(value.as_bytes()) {
            to.append_header((name, value));
        }
    }
}

/// An answer's pieces for as long as its container and its time last; with them the visit ends.
fn guarded(
    mut pieces: Pieces,
    mut visit: Visit,
    mut place: Place,
    deadline: Instant,
) -> Pin<Box<dyn Stream<Item = io::Result<Bytes>>>> {
    Box::pin(async_stream::stream! {
        loop {
            let next = tokio::select! {
                biased;
                next = pieces.next() => next,
                why = broken(&mut place.expelled, deadline, place.timeout) => {
                    visit.broke(&why);
                    // The answer has begun: breaking it off is the only way to say so.
                    yield Err(io::Error::other(why.detail));
                    return;
                }
            };
            let Some(piece) = next else { return };
            if let Err(error) = &piece {
                visit.broke(&Refusal::new(Code::FunctionFailed, error.to_string()));
            }
            yield piece;
        }
    })
}

/// What a container sends over an upgraded connection; what the client sends goes the other way meanwhile.
fn tunnel(response: hyper::Response<Incoming>, upload: Option<Upload>) -> impl Stream<Item = io::Result<Bytes>> {
    async_stream::try_stream! {
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let up = async move {
            let Some(upload) = upload else { return };
            let mut pieces = Box::pin(upload.pieces());
            while let Some(Ok(piece)) = pieces.next().await {
                if write.write_all(&piece).await.is_err() {
                    return;
                }
            }
            // The client has closed its side; the container may still answer.
            let _ = write.shutdown().await;
        };
        let up = AbortOnDrop(tokio::spawn(up));
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = read.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            yield Bytes::copy_from_slice(&buffer[..count]);
        }
        drop(up);
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
