//! Clients: they bring calls, send again what was not answered, and remember what they were promised.

use bytes::Bytes;
use capstan_common::{call::CallKind, id::CallId, input::Payload, time::Time};
use capstan_scheduler_core::{
    event::{Inputs, Opening},
    record::Segment,
};
use std::collections::BTreeSet;

/// Inputs in one packed segment of a simulated upload.
const SEGMENT: u64 = 48;

/// A client with one call to make.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its function.
    pub function: usize,
    /// Its verb.
    pub kind: CallKind,
    /// How many inputs it brings.
    pub inputs: u64,
    /// Whether it sends again, with the same key, until it hears an answer.
    pub keyed: bool,
    /// Whether it will cancel.
    pub cancels: bool,
    /// Ids that it has used.
    pub asked: BTreeSet<CallId>,
    /// The call that it was promised.
    pub accepted: Option<CallId>,
    /// Inputs that a map has sent.
    pub sent: u64,
    /// When the last of them arrives: a stream keeps its order.
    pub arrives: Time,
    /// Maps: whether all were sent.
    pub closed: bool,
    /// It waits for nothing any more.
    pub done: bool,
}

/// Every input is its own index, and every output its input: what comes out is known.
pub fn payloads(from: u64, count: u64) -> Vec<Payload> {
    (from..from + count).map(|n| Payload::Inline(Bytes::from(n.to_string()))).collect()
}

impl Client {
    /// The call, and the segments to be written before it.
    pub fn opening(&self, number: usize, call: CallId) -> (Opening, Vec<(u32, Vec<Payload>)>) {
        let mut packed = Vec::new();
        let inputs = match self.kind {
            CallKind::Map => Inputs::Later,
            CallKind::SpawnMap => {
                let mut segments = Vec::new();
                let mut first = 0;
                while first < self.inputs {
                    let count = SEGMENT.min(self.inputs - first);
                    let number = segments.len() as u32;
                    segments.push(Segment { number, first, count: count as u32 });
                    packed.push((number, payloads(first, count)));
                    first += count;
                }
                Inputs::Stored(segments)
            }
            _ => Inputs::Here(payloads(0, self.inputs)),
        };
        let opening = Opening {
            call,
            kind: self.kind,
            inputs,
            traceparent: "".into(),
            key: self.keyed.then(|| (format!("client-{number}"), [number as u8; 32])),
            fail_fast: false,
            discard_outputs: false,
        };
        (opening, packed)
    }
}
