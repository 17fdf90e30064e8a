//! A client's request as it goes on to a container: its body as a stream, its path as it was written, its headers without
//! those of its connection.

use super::{Body, OWN, Problem};
use crate::{actor::function::Place, api::web::Visit, config::SchedulerConfig};
use actix_web::{
    HttpRequest,
    http::{
        Method, Version,
        header::{self, HeaderMap, HeaderName},
    },
    web,
};
use bytes::Bytes;
use capstan_common::refusal::Code;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};
use tokio::sync::mpsc;

/// How much is read of a body that nobody wants any more, and for how long.
const FORGOTTEN_BYTES: usize = 64 << 20;
const FORGETTING: Duration = Duration::from_secs(2);
/// Pieces of a request's body that are read ahead of its container.
const AHEAD: usize = 8;

/// A request's body on its way: read from the client when the container reads it, and whole until then.
#[derive(Clone)]
pub struct Upload(Arc<Mutex<mpsc::Receiver<io::Result<Bytes>>>>);

impl Upload {
    /// Reads the client's body as it is taken. Ends when the last handle on it is gone.
    pub fn of(mut payload: web::Payload) -> Self {
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

    /// Its pieces, each once.
    pub fn pieces(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        futures_util::stream::poll_fn(move |context| -> Poll<Option<io::Result<Bytes>>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(context)
        })
    }

    /// Reads what is left of it, and forgets it: a client that is closed on while it sends may never see its answer.
    pub async fn forget(self) {
        let all = async {
            let (mut pieces, mut left) = (std::pin::pin!(self.pieces()), FORGOTTEN_BYTES);
            while let Some(Ok(piece)) = pieces.next().await {
                left = left.saturating_sub(piece.len());
                if left == 0 {
                    return;
                }
            }
        };
        // One that goes on sending has had time enough.
        let _ = tokio::time::timeout(FORGETTING, all).await;
    }

    /// The same as a body.
    pub fn body(self) -> Body {
        BodyExt::boxed_unsync(StreamBody::new(self.pieces().map(|piece| piece.map(Frame::data))))
    }
}

/// A body without anything in it.
pub fn nothing() -> Body {
    BodyExt::boxed_unsync(http_body_util::Empty::new().map_err(|never| match never {}))
}

/// What a client asked for, as it is sent to a container.
pub(super) struct Asked {
    method: hyper::Method,
    path: String,
    headers: hyper::HeaderMap,
    /// Under which path the function is reached, and by which host.
    pub(super) reached: Reached,
    /// Its body, if it has one.
    pub(super) upload: Option<Upload>,
    /// Whether it asks for a WebSocket.
    pub(super) upgrades: bool,
}

impl Asked {
    /// `spent` says whether `Authorization` was used up: it opened Capstan, and is none of the container's business.
    pub(super) fn of(
        request: &HttpRequest,
        payload: web::Payload,
        spent: bool,
        config: &SchedulerConfig,
    ) -> Result<Self, Problem> {
        // An upgrade that is not known is passed over (RFC 9110, section 7.8): only WebSockets are passed through.
        let upgrades = is_websocket(request.headers());
        let given = |name| request.headers().contains_key(name);
        let has_body = given(header::CONTENT_LENGTH) || given(header::TRANSFER_ENCODING);
        if upgrades && (has_body || *request.method() != Method::GET || request.version() < Version::HTTP_11) {
            // What follows would be taken for the socket's first bytes by one, and for a body by the other.
            return Err(Problem::new(Code::Malformed, "a WebSocket begins with a GET of HTTP/1.1 that has no body"));
        }
        let reached = Reached::of(request, config);
        Ok(Self {
            method: hyper::Method::from_bytes(request.method().as_str().as_bytes())
                .map_err(|_| Problem::new(Code::Malformed, "the method cannot be read"))?,
            path: target(request),
            headers: headers_for(request, upgrades, spent, &reached),
            reached,
            upload: (has_body || upgrades).then(|| Upload::of(payload)),
            upgrades,
        })
    }

    /// Whether it may be sent once more after nothing came back: it has no body, and its method changes nothing.
    pub(super) fn is_repeatable(&self) -> bool {
        self.upload.is_none() && self.method.is_safe()
    }

    pub(super) fn request(&self, place: &Place, visit: &Visit) -> Result<hyper::Request<Body>, Problem> {
        let body = match &self.upload {
            // What follows an upgrade is no body.
            Some(upload) if !self.upgrades => upload.clone().body(),
            _ => nothing(),
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

/// Where clients reach the function.
pub(super) struct Reached {
    /// The path up to the function's name.
    prefix: String,
    /// Scheme and host of the request.
    origin: String,
    scheme: &'static str,
    host: String,
}

/// Scheme and host by which a client reaches us. What it says of that itself counts only where it is a proxy that the
/// configuration names.
fn origin(request: &HttpRequest, config: &SchedulerConfig) -> (&'static str, String) {
    let told = |name: &str| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.split(',').next()?.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let from = request.peer_addr().map(|from| from.ip());
    let proxied = from.is_some_and(|from| config.trusted_proxies.contains(&from));
    let forwarded = |name| told(name).filter(|_| proxied);
    let scheme = match forwarded("x-forwarded-proto").as_deref() {
        Some("https") => "https",
        Some("http") => "http",
        _ => config.scheme(),
    };
    let host = forwarded("x-forwarded-host").or_else(|| told("host"));
    (scheme, host.unwrap_or_else(|| config.listen.to_string()))
}

impl Reached {
    fn of(request: &HttpRequest, config: &SchedulerConfig) -> Self {
        let prefix: Vec<&str> = request.uri().path().splitn(5, '/').take(4).collect();
        let (scheme, host) = origin(request, config);
        Self { prefix: prefix.join("/"), origin: format!("{scheme}://{host}"), scheme, host }
    }

    /// A cookie of a function's page is for that function alone, whatever path and domain the page has for it.
    pub(super) fn cookie(&self, cookie: &str) -> String {
        let mut parts = cookie.split(';');
        let mut out = parts.next().unwrap_or_default().to_owned();
        let mut path = format!("{}/", self.prefix);
        for part in parts {
            let (name, value) = part.split_once('=').map_or((part.trim(), ""), |(n, v)| (n.trim(), v.trim()));
            if name.eq_ignore_ascii_case("path") {
                if value.starts_with('/') && value != "/" {
                    path = if value.starts_with(&path) { value.to_owned() } else { format!("{}{value}", self.prefix) };
                }
            } else if !name.eq_ignore_ascii_case("domain") {
                out.push(';');
                out.push_str(part);
            }
        }
        format!("{out}; Path={path}")
    }

    /// A server that does not know its prefix sends clients to paths of its own: the same place as clients reach it.
    pub(super) fn place(&self, location: &str) -> String {
        let path = location.strip_prefix(&self.origin).unwrap_or(location);
        // One that knows its prefix, or leads to another function, says where clients reach it.
        if !path.starts_with('/') || path.starts_with("//") || path.starts_with("/web/") {
            return location.to_owned();
        }
        format!("{}{path}", self.prefix)
    }
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
fn headers_for(request: &HttpRequest, upgrades: bool, spent: bool, reached: &Reached) -> hyper::HeaderMap {
    let named = request.headers().get_all(header::CONNECTION).filter_map(|v| v.to_str().ok());
    let named: Vec<String> = named.flat_map(|v| v.split(',')).map(|v| v.trim().to_ascii_lowercase()).collect();
    // Headers of Capstan's own mark inputs, and those of proxies say how we are reached; nobody else makes them up.
    let ours = |name: &HeaderName| {
        let name = name.as_str();
        let told = matches!(name, "forwarded" | "x-forwarded-host" | "x-forwarded-proto" | "x-forwarded-prefix");
        name.starts_with("capstan-") || told || (name == "authorization" && spent)
    };
    // Of a chunked body the length is not known, whatever the client says besides.
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let mut out = hyper::HeaderMap::new();
    for (name, value) in request.headers() {
        let untrue = chunked && *name == header::CONTENT_LENGTH;
        if OWN.contains(name) || untrue || ours(name) || named.iter().any(|n| n == name.as_str()) {
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
    if chunked {
        // Else a GET would lose its body.
        set("transfer-encoding", "chunked");
    }
    if upgrades {
        set("connection", "upgrade");
        set("upgrade", "websocket");
    }
    if let Some(peer) = request.peer_addr() {
        let before = request.headers().get_all("x-forwarded-for").filter_map(|v| v.to_str().ok());
        let chain: Vec<String> = before.map(str::to_owned).chain([peer.ip().to_string()]).collect();
        set("x-forwarded-for", &chain.join(", "));
    }
    set("x-forwarded-host", &reached.host);
    set("x-forwarded-proto", reached.scheme);
    set("x-forwarded-prefix", &reached.prefix);
    out
}

#[cfg(test)]
mod tests {
    use super::Reached;

    fn reached() -> Reached {
        let host = "127.0.0.1:7070".to_owned();
        Reached { prefix: "/web/default/site".into(), origin: format!("http://{host}"), scheme: "http", host }
    }

    #[test]
    fn a_cookie_stays_below_its_function() {
        for (told, kept) in [
            ("a=1", "a=1; Path=/web/default/site/"),
            ("a=1; Path=/; HttpOnly", "a=1; HttpOnly; Path=/web/default/site/"),
            ("a=1; path=/app; Domain=example.com", "a=1; Path=/web/default/site/app"),
            ("a=1; Path=/web/default/site/x; Secure", "a=1; Secure; Path=/web/default/site/x"),
            ("a=1; Path=/web/default/other", "a=1; Path=/web/default/site/web/default/other"),
        ] {
            assert_eq!(reached().cookie(told), kept, "{told}");
        }
    }

    #[test]
    fn a_servers_own_paths_lead_to_where_clients_reach_it() {
        let reached = reached();
        for (told, led) in [
            ("/a/?b=1", "/web/default/site/a/?b=1"),
            ("/", "/web/default/site/"),
            ("http://127.0.0.1:7070/a", "/web/default/site/a"),
            ("/web/default/site/a", "/web/default/site/a"),
            ("/web/default/other", "/web/default/other"),
            ("relative/path", "relative/path"),
            ("//elsewhere/a", "//elsewhere/a"),
            ("https://example.com/a", "https://example.com/a"),
        ] {
            assert_eq!(reached.place(told), led, "{told}");
        }
    }
}
