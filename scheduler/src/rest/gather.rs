//! What all schedulers have: lists gathered, streams of events merged, and whoever knows of something found.

use super::{
    forward::{LIST_MAX, answer, asked, hops},
    web::{Proxy, pass::nothing},
};
use crate::{
    api::{Api, owner::PATIENCE},
    cluster::Peer,
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http_body_util::BodyExt;

/// Another scheduler's answer to this request, from the one that knows what it is about; what another one refuses counts only if
/// none does better.
pub async fn elsewhere(api: &Api, request: &HttpRequest) -> Option<HttpResponse> {
    if hops(request) > 0 {
        return None;
    }
    let proxy = request.app_data::<web::Data<Proxy>>()?;
    let mut refused = None;
    for peer in api.peers() {
        let asking = proxy.client.request(asked(request, &peer, 0, false, nothing()).ok()?);
        let Ok(Ok(response)) = tokio::time::timeout(PATIENCE / 5, asking).await else { continue };
        if response.status().is_success() {
            return Some(answer(response, None, false).await);
        }
        if response.status() != hyper::StatusCode::NOT_FOUND {
            refused = Some(response);
        }
    }
    Some(answer(refused?, None, false).await)
}

/// How a stream of events begins.
pub const BEGINNING: &[u8] = b": events follow";
/// What ends one event of a stream (server-sent events).
const EVENT_END: &[u8] = b"\n\n";

/// The events of all other schedulers, each whole, as they come; nothing for a stream that another one asks for. A scheduler that
/// comes later is not listened to, and one that ends falls silent: whoever wants to miss nothing asks again.
pub async fn events(api: &Api, request: &HttpRequest) -> impl Stream<Item = Bytes> + use<> {
    let peers = if hops(request) > 0 { Vec::new() } else { api.peers() };
    let proxy = request.app_data::<web::Data<Proxy>>();
    let listen = |peer: Peer| async move {
        let asked = asked(request, &peer, 0, false, nothing()).ok()?;
        let answer = tokio::time::timeout(PATIENCE / 5, proxy?.client.request(asked)).await.ok()?.ok()?;
        answer.status().is_success().then(|| Box::pin(whole(answer.into_body())))
    };
    stream::select_all(join_all(peers.into_iter().map(listen)).await.into_iter().flatten())
}

/// A body's events, each whole.
fn whole(body: hyper::body::Incoming) -> impl Stream<Item = Bytes> {
    let pieces = body.into_data_stream().take_while(|piece| std::future::ready(piece.is_ok()));
    let mut rest = BytesMut::new();
    pieces.flat_map(move |piece| {
        rest.extend_from_slice(&piece.unwrap_or_default());
        let mut events = Vec::new();
        while let Some(end) = memchr::memmem::find(&rest, EVENT_END) {
            let event = rest.split_to(end + EVENT_END.len()).freeze();
            // How it begins each says for itself.
            events.extend(Some(event).filter(|event| !event.starts_with(BEGINNING)));
        }
        if rest.len() > LIST_MAX {
            rest.clear();
        }
        stream::iter(events)
    })
}
