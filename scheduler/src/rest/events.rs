//! Events over REST: server-sent events of all schedulers in one stream, each with the place to go on from.

use super::{
    forward::{asked_at, hops},
    guard::subject,
    problem::{Answer, Problem, query},
    web::{Proxy, pass::nothing},
};
use crate::{
    api::{Api, owner::PATIENCE},
    clock,
    telemetry::events::Event,
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use capstan_common::refusal::Refusal;
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http_body_util::BodyExt;
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::broadcast::error::RecvError;

/// A comment comes so often, so that everybody in between knows that the stream lives.
const BEAT: Duration = Duration::from_secs(15);
/// What ends one event of a stream.
const EVENT_END: &[u8] = b"\n\n";
/// The largest event of another scheduler.
const EVENT_MAX: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    namespace: Option<String>,
    function: Option<String>,
    after: Option<String>,
}

/// Where a listener is: the number of the last event of each scheduler. Of a scheduler that it does not name the number that stands
/// alone counts: numbers are times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    all: Option<u64>,
    of: BTreeMap<String, u64>,
}

impl Place {
    fn read(text: &str) -> Result<Self, Refusal> {
        let mut place = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, number) = part.rsplit_once(':').map_or((None, part), |(name, number)| (Some(name), number));
            let number = number.parse().map_err(|_| {
                let shown: String = text.chars().take(40).collect();
                Refusal::field("after", format!("`{shown}` is not the id of an event"))
            })?;
            match name {
                Some(name) => drop(place.of.insert(name.to_owned(), number)),
                None => place.all = Some(number),
            }
        }
        Ok(place)
    }

    fn of(&self, scheduler: &str) -> Option<u64> {
        self.of.get(scheduler).copied().or(self.all)
    }

    /// As the id of the event that was given last.
    fn text(&self, number: u64) -> String {
        if self.of.len() < 2 && self.all.is_none() {
            return number.to_string();
        }
        let named = self.of.iter().map(|(name, number)| format!("{name}:{number}"));
        self.all.iter().map(u64::to_string).chain(named).collect::<Vec<_>>().join(",")
    }
}

/// One event of one scheduler, or words for nobody.
enum Piece {
    Event { scheduler: String, id: u64, kind: String, data: String },
    Comment(String),
}

fn own(scheduler: &str, event: &Event) -> Piece {
    Piece::Event {
        scheduler: scheduler.to_owned(),
        id: event.id,
        kind: event.kind.to_owned(),
        data: event.text.clone(),
    }
}

/// Ours, since `after` and from now on.
fn ours<F: Fn(&Event) -> bool + 'static>(
    api: &Api,
    scheduler: String,
    after: Option<u64>,
    takes: F,
) -> impl Stream<Item = Piece> + use<F> {
    let mut listener = api.telemetry().events.listen(after);
    async_stream::stream! {
        if listener.has_gap {
            yield Piece::Comment("some of the events since then are not kept any more".into());
        }
        for event in listener.before.iter().filter(|event| takes(event)) {
            yield own(&scheduler, event);
        }
        loop {
            match listener.news.recv().await {
                Ok(event) if takes(&event) => yield own(&scheduler, &event),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => yield Piece::Comment(format!("{missed} events were missed")),
                Err(RecvError::Closed) => break,
            }
        }
    }
}

/// Those of all other schedulers. One that comes later is not listened to, and one that ends falls silent: whoever wants to miss
/// nothing asks again from its place.
async fn theirs(api: &Api, request: &HttpRequest, place: &Place, filter: &str) -> impl Stream<Item = Piece> + use<> {
    let peers = if hops(request) > 0 { Vec::new() } else { api.named_peers() };
    let proxy = request.app_data::<web::Data<Proxy>>();
    let listen = |(name, peer): (String, crate::cluster::Peer)| async move {
        let after = place.of(&name).map_or_else(String::new, |after| format!("&after={after}"));
        let target = format!("/v1/events?{filter}{after}");
        let asked = asked_at(request, &peer, 0, &target, nothing()).ok()?;
        let answer = tokio::time::timeout(PATIENCE / 5, proxy?.client.request(asked)).await.ok()?.ok()?;
        answer.status().is_success().then(|| Box::pin(read(name, answer.into_body())))
    };
    stream::select_all(join_all(peers.into_iter().map(listen)).await.into_iter().flatten())
}

/// A body's events, each whole.
fn read(scheduler: String, body: hyper::body::Incoming) -> impl Stream<Item = Piece> {
    let pieces = body.into_data_stream().take_while(|piece| std::future::ready(piece.is_ok()));
    let mut rest = BytesMut::new();
    pieces.flat_map(move |piece| {
        rest.extend_from_slice(&piece.unwrap_or_default());
        let mut events = Vec::new();
        while let Some(end) = memchr::memmem::find(&rest, EVENT_END) {
            let event = rest.split_to(end + EVENT_END.len());
            events.extend(parsed(&scheduler, &String::from_utf8_lossy(&event)));
        }
        if rest.len() > EVENT_MAX {
            rest.clear();
        }
        stream::iter(events)
    })
}

/// An event as it is written; what another scheduler says to nobody each says for itself.
fn parsed(scheduler: &str, text: &str) -> Option<Piece> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let id = field("id:")?.parse().ok()?;
    let (kind, data) = (field("event:")?.to_owned(), field("data:")?.to_owned());
    Some(Piece::Event { scheduler: scheduler.to_owned(), id, kind, data })
}

pub async fn events(api: web::Data<Api>, request: HttpRequest) -> Answer {
    let EventsQuery { namespace, function, after } = query(&request)?;
    let last = request.headers().get("Last-Event-ID").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let mut place = Place::read(&after.or(last).unwrap_or_default())?;
    let asks_for_earlier = place != Place::default();
    let filter = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(namespace.iter().map(|value| ("namespace", value)))
        .extend_pairs(function.iter().map(|value| ("function", value)))
        .finish();
    let me = api.own_name();
    let is_merged = api.is_clustered() && hops(&request) == 0;
    if is_merged {
        // Each scheduler counts for itself: one that has said nothing yet is gone on with from here.
        let now = place.all.unwrap_or(clock::now().0);
        let names: Vec<String> = api.named_peers().into_iter().map(|(name, _)| name).chain([me.clone()]).collect();
        // Of others nothing is said again: a name from outside is written into the stream.
        place.of.retain(|name, _| names.contains(name));
        for name in names {
            place.of.entry(name).or_insert(now);
        }
        place.all = None;
    }
    let own_after = place.of(&me).filter(|_| asks_for_earlier);
    if !is_merged {
        // One scheduler's numbers need no name.
        place = Place::default();
    }
    let others = theirs(&api, &request, &place, &filter).await;
    let who = subject(&request);
    let takes = move |event: &Event| {
        let is = |wanted: &Option<String>, of: Option<&str>| wanted.as_deref().is_none_or(|wanted| of == Some(wanted));
        is(&namespace, event.function.as_ref().map(|f| &*f.namespace))
            && is(&function, event.function.as_ref().map(|f| &*f.name))
            && event.is_seen_by(&who)
    };
    let own = ours(&api, me, own_after, takes);
    let beats = async_stream::stream! {
        loop {
            tokio::time::sleep(BEAT).await;
            yield Piece::Comment("still here".into());
        }
    };
    let pieces = stream::select(stream::select(Box::pin(own), others), Box::pin(beats));
    let written = pieces.map(move |piece| {
        let text = match piece {
            Piece::Comment(words) => format!(": {words}\n\n"),
            Piece::Event { scheduler, id, kind, data } => {
                place.of.insert(scheduler, id);
                format!("id: {}\nevent: {kind}\ndata: {data}\n\n", place.text(id))
            }
        };
        Ok::<_, Problem>(Bytes::from(text))
    });
    let first = stream::once(std::future::ready(Ok(Bytes::from_static(b": events follow\n\n"))));
    let all = first.chain(written).take_until(api.stopping().clone().cancelled_owned());
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("Cache-Control", "no-cache"))
        // A proxy in between passes each event on as it comes.
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(Box::pin(all)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written_and_names_each_scheduler() {
        let mut place = Place::default();
        place.of.insert("s1".into(), 5);
        assert_eq!(place.text(5), "5");
        place.of.insert("s:2".into(), 9);
        assert_eq!(place.text(9), "s1:5,s:2:9");
        let again = Place::read("s1:5,s:2:9").unwrap();
        assert_eq!((again.of("s1"), again.of("s:2"), again.of("s3")), (Some(5), Some(9), None));
        let one = Place::read("17").unwrap();
        assert_eq!((one.of("s1"), one.of("s3")), (Some(17), Some(17)));
        for bad in ["x", "s1:", "5;6", "-1"] {
            assert!(Place::read(bad).is_err(), "{bad}");
        }
    }
}
