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
use capstan_common::refusal::{Code, Refusal};
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde_json::Value;

/// What the other schedulers answer to the same question about what they own, at a place in their answers like `data/result`;
/// nothing for a question that another one asks. One that does not answer is left out: what it owns has a new owner soon.
pub async fn gather(api: &Api, request: &HttpRequest, field: &str) -> Vec<Value> {
    if hops(request) > 0 {
        return Vec::new();
    }
    let Some(proxy) = request.app_data::<web::Data<Proxy>>() else { return Vec::new() };
    let ask = |peer: Peer| async move {
        let answer = proxy.client.request(asked(request, &peer, 0, false, nothing()).ok()?).await.ok()?;
        let whole = Limited::new(answer.into_body(), LIST_MAX).collect().await.ok()?.to_bytes();
        serde_json::from_slice::<Value>(&whole).ok()
    };
    let patient = |peer| tokio::time::timeout(PATIENCE / 5, ask(peer));
    let answers = join_all(api.peers().into_iter().map(patient)).await;
    let mut found = Vec::new();
    for mut answer in answers.into_iter().filter_map(|answer| answer.ok().flatten()) {
        if let Some(Value::Array(items)) = answer.pointer_mut(&format!("/{field}")).map(Value::take) {
            found.extend(items);
        }
    }
    found
}

/// One page of what all schedulers have: the first `limit` in the order of `by`. Answers where the next one begins, if there is
/// one: behind the last item, by its `cursor` field.
pub fn merge<T: Serialize>(
    ours: Vec<T>,
    theirs: Vec<Value>,
    next: Option<String>,
    limit: usize,
    by: impl Fn(&Value, &Value) -> std::cmp::Ordering,
    cursor: &str,
) -> Result<(Vec<Value>, Option<String>), Refusal> {
    let value = |item| serde_json::to_value(item).map_err(|e| Refusal::new(Code::Internal, e.to_string()));
    let mut all = ours.into_iter().map(value).collect::<Result<Vec<_>, _>>()?;
    // Each of the others has told at most a page of its own: a full page may have more behind it.
    let more = next.is_some() || all.len() + theirs.len() > limit || theirs.len() >= limit;
    if theirs.is_empty() {
        return Ok((all, next));
    }
    all.extend(theirs);
    all.sort_by(by);
    all.truncate(limit);
    let last = all.last().and_then(|item| item[cursor].as_str()).map(str::to_owned);
    Ok((all, last.filter(|_| more)))
}

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

/// One answer of several to the same PromQL query: what has the same labels is one series, and its values add up.
pub fn add_up(ours: Vec<Value>, theirs: Vec<Value>) -> Vec<Value> {
    let mut sums: Vec<Value> = Vec::new();
    let value = |sample: &Value| sample["value"][1].as_str().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    for sample in ours.into_iter().chain(theirs) {
        match sums.iter_mut().find(|sum| sum["metric"] == sample["metric"]) {
            Some(sum) => sum["value"][1] = (value(sum) + value(&sample)).to_string().into(),
            None => sums.push(sample),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn series_of_the_same_labels_add_up() {
        let sample = |model: &str, value: &str| json!({"metric": {"model_name": model}, "value": [1.5, value]});
        let sums = add_up(vec![sample("a", "1"), sample("b", "2")], vec![sample("b", "3.5"), sample("c", "0")]);
        assert_eq!(sums, [sample("a", "1"), sample("b", "5.5"), sample("c", "0")]);
        assert!(add_up(Vec::new(), Vec::new()).is_empty());
    }
}
