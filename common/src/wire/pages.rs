//! Reports in pages of bounded size.

use super::link;
use crate::report::Report;

/// Bytes of one message of reports, about: a page of an inventory, or as many reports as have room.
pub const REPORTS_BYTES: usize = 1 << 20;
/// Bytes of a message of reports that a scheduler takes. What is larger than a page is a single outcome.
pub const REPORTS_MAX: usize = 16 << 20;

/// A report as it travels: in pages of bounded size where it may be long.
pub fn pages(report: Report) -> Vec<link::Report> {
    use link::report::Kind;
    let report = link::Report::from(report);
    let of = |kind| link::Report { kind: Some(kind) };
    match report.kind {
        Some(Kind::Finished(finished)) => {
            let container = finished.container;
            let page = |done| of(Kind::Finished(link::Finished { container, done }));
            split(finished.done).into_iter().map(page).collect()
        }
        Some(Kind::Inventory(inventory)) => {
            let mut pages = split(inventory.held.into_iter().flat_map(parts).collect());
            let last = pages.pop().unwrap_or_default();
            let page = |held, more| of(Kind::Inventory(link::Inventory { shard: inventory.shard, held, more }));
            let mut out: Vec<_> = pages.into_iter().map(|held| page(held, true)).collect();
            out.push(page(last, false));
            out
        }
        kind => vec![link::Report { kind }],
    }
}

/// A container of an inventory in parts, none of which has more outcomes than a page has room for.
fn parts(mut held: link::Held) -> Vec<link::Held> {
    let outcomes = split(std::mem::take(&mut held.finished));
    let bare = link::Held { running: Vec::new(), ..held.clone() };
    let mut parts = vec![held];
    for (position, finished) in outcomes.into_iter().enumerate() {
        match parts.get_mut(position) {
            Some(part) => part.finished = finished,
            None => parts.push(link::Held { finished, ..bare.clone() }),
        }
    }
    parts
}

/// Splits a list of messages into lists that have room in a page; a message that has none is a list of its own.
fn split<T: prost::Message>(all: Vec<T>) -> Vec<Vec<T>> {
    let (mut lists, mut bytes) = (Vec::<Vec<T>>::new(), 0);
    for one in all {
        let size = one.encoded_len();
        bytes += size;
        match lists.last_mut().filter(|_| bytes <= REPORTS_BYTES) {
            Some(list) => list.push(one),
            None => {
                bytes = size;
                lists.push(vec![one]);
            }
        }
    }
    lists
}
