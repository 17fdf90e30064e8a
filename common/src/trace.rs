//! W3C trace context of attempts: derived, not drawn, so that the worker that sends an attempt and the scheduler that
//! tells of it afterwards name the same span without a word between them.

use crate::id::CallId;
use std::fmt::Write;

/// The trace of an input that came without a context: as unique as the call's id.
pub fn trace_of(call: CallId, index: u64) -> u128 {
    let mixed = call.0 ^ (u128::from(mix(index ^ 0x5bd1_e995)) << 16);
    mixed.max(1)
}

/// The span in which one attempt of an input runs.
pub fn span_of(call: CallId, index: u64, attempt: u32) -> u64 {
    let folded = (call.0 >> 64) as u64 ^ (call.0 as u64);
    mix(folded ^ mix(index) ^ mix(u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15))).max(1)
}

/// The `traceparent` that an attempt's program gets: in the trace of `client`, if that is a trace context, and inside the
/// attempt's own span.
pub fn traceparent(client: &str, call: CallId, index: u64, attempt: u32) -> String {
    let span = span_of(call, index, attempt);
    let mut text = String::with_capacity(55);
    // Writing to a string cannot fail.
    let _ = match (client.get(3..35), client.get(53..55)) {
        (Some(trace), Some(flags)) => write!(text, "00-{trace}-{span:016x}-{flags}"),
        _ => write!(text, "00-{:032x}-{span:016x}-01", trace_of(call, index)),
    };
    text
}

/// Spreads a number's bits (the finalizer of SplitMix64, Steele et al. 2014).
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_attempt_stays_in_its_clients_trace_and_has_a_span_of_its_own() {
        let client = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let told = traceparent(client, CallId(7), 0, 1);
        assert!(told.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && told.ends_with("-00"), "{told}");
        assert!(!told.contains("00f067aa0ba902b7"));
        let own = traceparent("", CallId(7), 0, 1);
        assert_eq!((own.len(), &own[53..]), (55, "01"));
    }

    #[test]
    fn inputs_and_attempts_do_not_share_traces_and_spans() {
        let calls = [CallId(1 << 80), CallId((1 << 80) + 1), CallId(2 << 80)];
        let inputs = || calls.into_iter().flat_map(|call| (0..500).map(move |index| (call, index)));
        assert_eq!(inputs().map(|(c, i)| trace_of(c, i)).collect::<BTreeSet<_>>().len(), 1500);
        let spans: BTreeSet<_> = inputs().flat_map(|(c, i)| (1..4).map(move |a| span_of(c, i, a))).collect();
        assert_eq!(spans.len(), 4500);
    }
}
