//! A web server as people run one, for tests of the reverse proxy.
//!
//! `/show` answers the request as JSON; `/count` the length of its body; `/events` an event for each piece of the body as it
//! comes; `/ws` speaks WebSocket and sends back each message; `/status/N` answers N; `/hang` never answers, nor does an input
//! `"hang"`; `/drip` begins an
//! answer and never ends it; `/die` ends the program; `/metrics` counts the requests to `/hit`, and those before by argument.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::net::TcpListener;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

type Body = BoxBody<Bytes, Infallible>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let before = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let port: u16 = std::env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let hits = Arc::new(AtomicU64::new(before));
    loop {
        let (stream, _) = listener.accept().await?;
        let hits = hits.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, hits.clone()));
            // A client that closes its connection ends it.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

fn whole(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(http_body_util::Full::new(text.into()).boxed())
}

async fn answer(request: Request<Incoming>, hits: Arc<AtomicU64>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/count" => whole(length(request.into_body()).await.to_string()),
        "/events" => events(request.into_body()),
        "/ws" => web_socket(request),
        "/hang" => std::future::pending().await,
        "/drip" => {
            let begun = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"begun\n")))]);
            Response::new(BodyExt::boxed(StreamBody::new(begun.chain(futures_util::stream::pending()))))
        }
        "/" if request.method() == hyper::Method::POST => {
            let input = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            if &input[..] == br#""hang""# {
                std::future::pending::<()>().await;
            }
            whole(input)
        }
        "/die" => std::process::exit(9),
        "/hit" => whole(hits.fetch_add(1, Ordering::Relaxed).to_string()),
        "/metrics" => {
            let count = hits.load(Ordering::Relaxed);
            whole(format!("vllm:request_success_total{{model_name=\"m\"}} {count}.0\n"))
        }
        other => match other.strip_prefix("/status/").and_then(|n| n.parse::<u16>().ok()) {
            Some(status) => {
                let response = Response::builder().status(status).header("x-own", "kept");
                response.body(http_body_util::Full::from(format!("status {status}")).boxed()).unwrap_or_default()
            }
            None => whole(shown(&request)),
        },
    })
}

fn shown(request: &Request<Incoming>) -> String {
    let headers: BTreeMap<_, _> =
        request.headers().iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap_or_default())).collect();
    json!({"method": request.method().as_str(), "target": request.uri().to_string(), "headers": headers}).to_string()
}

async fn length(mut body: Incoming) -> usize {
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    length
}

/// Tells of each piece before the next one has come.
fn events(body: Incoming) -> Response<Body> {
    let pieces = body.into_data_stream().filter_map(async |piece| {
        let text = format!("data: {}\n\n", String::from_utf8_lossy(&piece.ok()?));
        Some(Ok(Frame::data(Bytes::from(text))))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(pieces)));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("text/event-stream"));
    response
}

fn web_socket(mut request: Request<Incoming>) -> Response<Body> {
    let key = request.headers().get("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes()));
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let response = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "websocket");
    let response = response.header("sec-websocket-accept", key.unwrap_or_default());
    response.body(http_body_util::Empty::new().boxed()).unwrap_or_default()
}
