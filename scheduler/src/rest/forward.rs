//! Any scheduler answers any request: what another one owns is passed on to it, bodies streaming both ways.

use super::{
    map::last_line,
    problem::Problem,
    web::{
        Proxy,
        pass::{OWN, Upload, begin, nothing, streamed, tunnel},
    },
};
use crate::{
    api::{
        Api,
        owner::{LOOK, Owner, PATIENCE},
    },
    cluster::Peer,
    route::{FORWARDED, HOPS, unavailable},
};
use actix_web::{
    Error, HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError,
    body::{self, BodyStream, EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderName},
    middleware::Next,
    web,
};
use bytes::Bytes;
use capstan_common::{
    id::{CallId, FunctionKey},
    refusal::{Code, Refusal},
};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode_str;
use std::{
    io,
    time::{Duration, Instant},
};

/// How long one that owns a function no more may still take to answer.
const STILL: Duration = Duration::from_secs(3);
/// What a request is told whose owner is gone.
const BROKEN_OFF: &str = "the scheduler that owns this function ended in the middle of the request; whether it was accepted is not known: ask, or send it again with an Idempotency-Key";
const MAP_BROKEN_OFF: &str = "the scheduler that owns this function ended in the middle of the map; what has no line here is not done: send those inputs again";
/// The longest list that one scheduler tells another.
pub const LIST_MAX: usize = 64 << 20;

/// How often a request was passed on.
pub fn hops(request: &HttpRequest) -> u32 {
    request.headers().get(FORWARDED).and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// The place of the function that a path is about.
fn place_of(path: &str) -> Option<u16> {
    let mut parts = path.trim_start_matches('/').split('/').map(|part| percent_decode_str(part).decode_utf8_lossy());
    let (first, second) = (parts.next()?, parts.next()?);
    let third = parts.next();
    if first == "web" {
        return Some(FunctionKey::new(&second, &third?).place());
    }
    match &*second {
        "namespaces" => {
            let (kind, function) = (parts.next()?, parts.next()?);
            (kind == "functions").then(|| FunctionKey::new(&third.unwrap_or_default(), &function).place())
        }
        "calls" => third?.parse::<CallId>().ok().map(CallId::place),
        _ => None,
    }
}

/// The ends of paths whose bodies stream inputs.
const STREAMS: [&str; 2] = ["/spawn_map", "/map"];

/// Whether a request is one that its handler asks as a verb, wherever the owner is: what streams is not.
fn is_asked_as_verb(path: &str) -> bool {
    !path.starts_with("/web/") && !STREAMS.iter().any(|end| path.ends_with(end))
}

/// Lets a request through if its function is ours, and passes it on otherwise.
pub async fn forward(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let api = request.app_data::<web::Data<Api>>().cloned();
    let place = place_of(request.path());
    let (Some(api), Some(place)) = (api.filter(|api| api.is_clustered()), place) else {
        return next.call(request).await.map(ServiceResponse::map_into_left_body);
    };
    if is_asked_as_verb(request.path()) {
        return next.call(request).await.map(ServiceResponse::map_into_left_body);
    }
    if let Owner::Here(_guest) = api.owner(place).await {
        return next.call(request).await.map(ServiceResponse::map_into_left_body);
    }
    let payload = request.extract::<web::Payload>().await?;
    let (request, _) = request.into_parts();
    let answer = pass(&api, &request, place, payload).await;
    let answer = answer.unwrap_or_else(|refusal| Problem::from(refusal).error_response());
    Ok(ServiceResponse::new(request, answer).map_into_right_body())
}

async fn pass(api: &Api, request: &HttpRequest, place: u16, payload: web::Payload) -> Result<HttpResponse, Refusal> {
    let hops = hops(request);
    if hops >= HOPS {
        return Err(unavailable("owners change too fast; try again"));
    }
    let given = |name: HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok());
    let upgrades = given(header::UPGRADE).is_some_and(|v| v.eq_ignore_ascii_case("websocket"));
    let has_body = given(header::CONTENT_LENGTH).is_some() || given(header::TRANSFER_ENCODING).is_some();
    let upload = (has_body || upgrades).then(|| Upload::of(payload));
    let proxy = request.app_data::<web::Data<Proxy>>().ok_or_else(|| unavailable("the scheduler starts"))?;
    let begun = Instant::now();
    loop {
        let peer = match api.owner(place).await {
            Owner::There(peer) => Some(peer),
            // It became ours while it was looked for: it comes in once more by the door.
            Owner::Here(_) => api.own_peer(),
            Owner::Nobody => None,
        };
        let Some(peer) = peer else {
            return Err(unavailable("the scheduler that owns this function is being replaced; try again in a moment"));
        };
        let body = match &upload {
            Some(upload) if !upgrades => upload.clone().body(),
            _ => nothing(),
        };
        let asking = proxy.client.request(asked(request, &peer, hops, upgrades, body)?);
        let sent = tokio::select! {
            sent = asking => sent,
            () = moved(api, place, &peer) => {
                if request.method().is_safe() && begun.elapsed() < PATIENCE {
                    continue;
                }
                return Err(unavailable(BROKEN_OFF));
            }
        };
        match sent {
            Ok(response) if request.path().ends_with("/map") && response.status().is_success() => {
                return Ok(lines(response));
            }
            Ok(response) => return Ok(answer(response, upload, upgrades).await),
            // Nothing was sent, or what was sent changes nothing: the next owner takes it.
            Err(error) if (error.is_connect() || request.method().is_safe()) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the owner did not answer");
                return Err(unavailable(BROKEN_OFF));
            }
        }
    }
}

/// Waits until another scheduler than this one owns the place, and a while longer: one that hands over in order still answers.
async fn moved(api: &Api, place: u16, peer: &Peer) {
    loop {
        tokio::time::sleep(LOOK * 10).await;
        let elsewhere = match api.enter(place) {
            Ok(_guest) => true,
            Err(owner) => owner.is_some_and(|owner| owner != *peer),
        };
        if elsewhere {
            return tokio::time::sleep(STILL).await;
        }
    }
}

/// The request as it goes to the owner.
pub fn asked(
    request: &HttpRequest,
    peer: &Peer,
    hops: u32,
    upgrades: bool,
    body: super::web::Body,
) -> Result<hyper::Request<super::web::Body>, Refusal> {
    let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let mut out = asked_at(request, peer, hops, target, body)?;
    if upgrades {
        out.headers_mut().insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("upgrade"));
        out.headers_mut().insert(hyper::header::UPGRADE, hyper::header::HeaderValue::from_static("websocket"));
    }
    Ok(out)
}

/// The same to another path and query.
pub fn asked_at(
    request: &HttpRequest,
    peer: &Peer,
    hops: u32,
    target: &str,
    body: super::web::Body,
) -> Result<hyper::Request<super::web::Body>, Refusal> {
    let wrong = |error: &dyn std::fmt::Display| {
        Refusal::new(Code::Malformed, format!("the request cannot be passed on: {error}"))
    };
    let proxy = request.app_data::<web::Data<Proxy>>();
    if proxy.is_none_or(|proxy| !proxy.may_tell(&peer.rest)) {
        return Err(unavailable(format!(
            "the scheduler at {} that must be asked does not encrypt REST, and this one does: set rest_tls on all",
            peer.rest
        )));
    }
    let mut out = hyper::Request::builder().method(request.method().as_str()).uri(format!("{}{target}", peer.rest));
    for (name, value) in request.headers() {
        if !OWN.contains(name) && *name != header::HOST && name.as_str() != FORWARDED {
            out = out.header(name.as_str(), value.as_bytes());
        }
    }
    out = out.header(FORWARDED, hops + 1);
    if request.headers().contains_key(header::TRANSFER_ENCODING) {
        out = out.header("transfer-encoding", "chunked");
    }
    out.body(body).map_err(|error| wrong(&error))
}

/// An answer with the status and the headers of the owner's.
fn begun(response: &hyper::Response<hyper::body::Incoming>) -> (HttpResponseBuilder, Option<u64>) {
    let (mut builder, length) = begin(response);
    for (name, value) in response.headers() {
        let Ok(name) = HeaderName::from_bytes(name.as_str().as_bytes()) else { continue };
        if OWN.contains(&name) || name == header::CONTENT_LENGTH {
            continue;
        }
        if let Ok(value) = header::HeaderValue::from_bytes(value.as_bytes()) {
            builder.append_header((name, value));
        }
    }
    (builder, length)
}

/// A map's outputs as they come from the owner; if that ends in the middle, the last line says so.
fn lines(response: hyper::Response<hyper::body::Incoming>) -> HttpResponse {
    let (mut builder, _) = begun(&response);
    let mut pieces = response.into_body().into_data_stream();
    let lines = async_stream::stream! {
        let mut whole = true;
        while let Some(piece) = pieces.next().await {
            let Ok(piece) = piece else {
                let line_end = if whole { "" } else { "\n" };
                yield Ok::<_, io::Error>(Bytes::from(format!("{line_end}{}", last_line(&unavailable(MAP_BROKEN_OFF)))));
                return;
            };
            whole = piece.last().is_none_or(|byte| *byte == b'\n');
            yield Ok(piece);
        }
    };
    builder.streaming(Box::pin(lines))
}

/// The owner's answer, as it comes.
pub async fn answer(
    response: hyper::Response<hyper::body::Incoming>,
    upload: Option<Upload>,
    upgrades: bool,
) -> HttpResponse {
    let status = response.status();
    let (mut builder, length) = begun(&response);
    if status == hyper::StatusCode::SWITCHING_PROTOCOLS {
        builder.upgrade("websocket");
        return builder.body(BodyStream::new(Box::pin(tunnel(response, upload))));
    }
    if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
        return builder.body(body::None::new());
    }
    if upgrades {
        // A refused handshake is answered on a connection that expected raw bytes: whole, and as its last.
        let whole = Limited::new(response.into_body(), LIST_MAX).collect().await;
        return builder.force_close().body(whole.map(|whole| whole.to_bytes()).unwrap_or_default());
    }
    let pieces = response.into_body().into_data_stream().map(|piece| piece.map_err(io::Error::other));
    streamed(builder, length, Box::pin(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lie_where_their_functions_lie() {
        let function = FunctionKey::new("default", "my-app.f");
        let call = CallId(0x0192_f0c1_d2e3_7a4b_8c5d_6e7f_8091_0a1b).placed(function.place());
        for path in [
            "/v1/namespaces/default/functions/my-app.f",
            "/v1/namespaces/default/functions/my-app.f%3Bversion=3.5/invoke",
            "/web/default/my-app.f/a/b",
            &format!("/v1/calls/{call}/results"),
        ] {
            assert_eq!(place_of(path), Some(function.place()), "{path}");
        }
        for path in [
            "/",
            "/v1/calls",
            "/v1/workers/x",
            "/v1/namespaces/default",
            "/v1/namespaces/default/functions",
            "/v1/calls/x",
        ] {
            assert_eq!(place_of(path), None, "{path}");
        }
    }
}
