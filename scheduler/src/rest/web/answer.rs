//! A container's answer on its way back: streamed as it comes, broken off when its container or its time is gone.

use super::{
    OWN,
    asked::{Asked, Reached, Upload},
};
use crate::{actor::function::Place, api::web::Visit};
use actix_web::{
    HttpResponse, HttpResponseBuilder,
    body::{self, BodyStream, SizedStream},
    http::header::{self, HeaderName},
};
use bytes::{Bytes, BytesMut};
use capstan_common::refusal::{Code, Refusal};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::{
    io,
    pin::Pin,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};
use tokio_util::task::AbortOnDropHandle;

/// The longest answer to a handshake that is refused.
const REFUSAL_MAX: usize = 1 << 20;

/// Comes back when the container is gone or the request's time is over.
pub(super) async fn broken(expelled: &mut oneshot::Receiver<Refusal>, deadline: Instant, timeout: Duration) -> Refusal {
    let late = tokio::time::sleep_until(deadline.into());
    tokio::select! {
        why = expelled => why.unwrap_or_else(|_| Refusal::new(Code::Unavailable, "the scheduler is stopping")),
        () = late => {
            let detail = format!("the request lasted longer than timeout_s ({} s)", timeout.as_secs_f64());
            Refusal::new(Code::FunctionTimeout, detail)
        }
    }
}

/// A body's pieces as they come.
pub type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>;

/// A container's answer, streamed as it comes; the visit lasts as long.
pub(super) async fn answer(
    response: hyper::Response<Incoming>,
    asked: Asked,
    mut visit: Visit,
    mut place: Place,
    deadline: Instant,
) -> Result<HttpResponse, Refusal> {
    let status = response.status();
    if status == hyper::StatusCode::SWITCHING_PROTOCOLS && !asked.upgrades {
        let why = Refusal::new(Code::FunctionFailed, "its server changed the protocol, which nobody had asked for");
        visit.broke(&why);
        return Err(why);
    }
    visit.answered(status.as_u16());
    let (mut builder, length) = begin(&response);
    copy_headers(response.headers(), &asked.reached, &mut builder);
    builder.insert_header(("capstan-container", place.container.to_string()));
    if status == hyper::StatusCode::SWITCHING_PROTOCOLS {
        builder.upgrade("websocket");
        let pieces: Pieces = Box::pin(tunnel(response, asked.upload));
        return Ok(builder.body(BodyStream::new(guarded(pieces, None, visit, place, deadline))));
    }
    if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
        return Ok(builder.body(body::None::new()));
    }
    if asked.upgrades {
        // A refused handshake is answered on a connection that expected raw bytes: whole, and as its last.
        let whole = Limited::new(response.into_body(), REFUSAL_MAX).collect();
        let whole = tokio::select! {
            whole = whole => whole,
            why = broken(&mut place.expelled, deadline, place.timeout) => return Err(why),
        };
        let whole =
            whole.map_err(|error| Refusal::new(Code::FunctionFailed, format!("its answer broke off: {error}")))?;
        return Ok(builder.force_close().body(whole.to_bytes()));
    }
    let early = asked.upload.is_some() && status.as_u16() >= 400;
    if early && length.is_some_and(|length| length <= REFUSAL_MAX as u64) {
        // A server that has refused may close before all of its reasons have left it: what came of them is passed on.
        let reasons = reasons(response.into_body());
        let whole = tokio::select! {
            whole = reasons => whole,
            why = broken(&mut place.expelled, deadline, place.timeout) => return Err(why),
        };
        let length = whole.len() as u64;
        let pieces: Pieces = Box::pin(stream::iter([Ok(whole)]));
        return Ok(streamed(builder, Some(length), guarded(pieces, asked.upload, visit, place, deadline)));
    }
    let pieces: Pieces = Box::pin(response.into_body().into_data_stream().map(|piece| piece.map_err(io::Error::other)));
    let pieces = guarded(pieces, asked.upload, visit, place, deadline);
    Ok(streamed(builder, length, pieces))
}

/// A body as far as it came.
async fn reasons(body: Incoming) -> Bytes {
    let (mut all, mut pieces) = (BytesMut::new(), body.into_data_stream());
    while let Some(Ok(piece)) = pieces.next().await {
        all.extend_from_slice(&piece);
    }
    all.freeze()
}

/// An answer of the same status, and how long its body is, if that was said.
pub fn begin(response: &hyper::Response<Incoming>) -> (HttpResponseBuilder, Option<u64>) {
    let status = actix_web::http::StatusCode::from_u16(response.status().as_u16());
    // Where both are given the length is not true (RFC 9112, 6.3).
    let chunked = response.headers().contains_key(hyper::header::TRANSFER_ENCODING);
    let length = response.headers().get(hyper::header::CONTENT_LENGTH).filter(|_| !chunked);
    let length = length.and_then(|v| v.to_str().ok()?.parse().ok());
    (HttpResponse::build(status.unwrap_or(actix_web::http::StatusCode::BAD_GATEWAY)), length)
}

/// An answer whose body comes in pieces; not as `streaming`, which makes up a content type.
pub fn streamed(mut builder: HttpResponseBuilder, length: Option<u64>, pieces: Pieces) -> HttpResponse {
    match length {
        Some(length) => builder.body(SizedStream::new(length, pieces)),
        None => builder.body(BodyStream::new(pieces)),
    }
}

fn copy_headers(headers: &hyper::HeaderMap, reached: &Reached, to: &mut HttpResponseBuilder) {
    let named = headers.get_all(hyper::header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> = named.flat_map(|v| v.split(',')).map(|v| v.trim().to_ascii_lowercase()).collect();
    for (name, value) in headers {
        let Ok(name) = HeaderName::from_bytes(name.as_str().as_bytes()) else { continue };
        // A function's page must not put itself in charge of others' paths.
        let too_far = name.as_str() == "service-worker-allowed";
        let of_connection = OWN.contains(&name) || named.iter().any(|named| named == name.as_str());
        if of_connection || name == header::CONTENT_LENGTH || too_far {
            continue;
        }
        if name == header::SET_COOKIE {
            let kept = value.to_str().map(|cookie| reached.cookie(cookie));
            if let Ok(kept) = kept {
                to.append_header((name, kept));
            }
            continue;
        }
        if matches!(name, header::LOCATION | header::CONTENT_LOCATION)
            && let Ok(location) = value.to_str()
        {
            to.append_header((name, reached.place(location)));
            continue;
        }
        if let Ok(value) = header::HeaderValue::from_bytes(value.as_bytes()) {
            to.append_header((name, value));
        }
    }
}

/// An answer's pieces for as long as its container and its time last; with them the visit ends. What the client still sends when
/// the answer is complete is read before that ends.
fn guarded(
    mut pieces: Pieces,
    upload: Option<Upload>,
    mut visit: Visit,
    mut place: Place,
    deadline: Instant,
) -> Pieces {
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
            let Some(piece) = next else {
                drop(visit);
                if let Some(upload) = upload {
                    upload.forget().await;
                }
                return;
            };
            if let Err(error) = &piece {
                visit.broke(&Refusal::new(Code::FunctionFailed, error.to_string()));
            }
            yield piece;
        }
    })
}

/// What a container sends over an upgraded connection; what the client sends goes the other way meanwhile.
pub fn tunnel(response: hyper::Response<Incoming>, upload: Option<Upload>) -> impl Stream<Item = io::Result<Bytes>> {
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
        let up = AbortOnDropHandle::new(tokio::spawn(up));
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
