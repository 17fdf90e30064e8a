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

/// Characters of a `traceparent`.
const PARENT_CHARS: usize = 55;
/// Characters of a `tracestate` that are passed on (W3C Trace Context, §3.3.1.5).
const STATE_CHARS: usize = 512;

/// A client's trace context as it travels with its call: the `traceparent`, and behind a space the `tracestate`. Nothing, if
/// the `traceparent` is none by the letter of W3C's Trace Context (§3.2): version, 32 and 16 small hexadecimal digits that are
/// not all zero, flags. Version 00 has no more than that; later ones may, and are taken for 00.
pub fn context(parent: &str, state: Option<&str>) -> Option<String> {
    let (known, more) = (parent.get(..PARENT_CHARS)?, parent.get(PARENT_CHARS..)?);
    let mut parts = known.split('-');
    let mut part = |len: usize| {
        let small = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        parts.next().filter(|part| part.len() == len && part.bytes().all(small))
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let goes_on = if version == "00" { more.is_empty() } else { more.is_empty() || more.starts_with('-') };
    if version == "ff" || is_zero(trace) || is_zero(span) || !goes_on {
        return None;
    }
    let fits = |state: &&str| {
        !state.is_empty() && state.len() <= STATE_CHARS && state.bytes().all(|byte| matches!(byte, b' '..=b'~'))
    };
    let state = state.map(str::trim).filter(fits).map_or_else(String::new, |state| format!(" {state}"));
    Some(format!("00-{trace}-{span}-{flags}{state}"))
}

/// The `traceparent` of a context.
pub fn parent_of(context: &str) -> &str {
    context.split(' ').next().unwrap_or_default()
}

/// The `tracestate` of a context, if it has one.
pub fn state_of(context: &str) -> Option<&str> {
    context.get(PARENT_CHARS + 1..).filter(|state| !state.is_empty())
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
    fn only_contexts_by_the_letter_are_continued() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(context(good, None).as_deref(), Some(good));
        let later = format!("cc{}", &good[2..]);
        assert_eq!(context(&format!("{later}-more"), None).as_deref(), Some(good));
        let with = context(good, Some("a=1,b=2")).unwrap();
        assert_eq!((parent_of(&with), state_of(&with)), (good, Some("a=1,b=2")));
        assert!(traceparent(&with, CallId(7), 0, 1).starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        for odd in ["\u{1}", "", &"x".repeat(513)] {
            assert_eq!(context(good, Some(odd)).as_deref(), Some(good));
        }
        let upper = good.to_uppercase();
        let (zero_trace, zero_span) = (
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
        );
        for bad in [
            "",
            "garbage",
            &upper,
            &zero_trace,
            &zero_span,
            &format!("{good}-extra"),
            &format!("{good}0"),
            &format!("ff{}", &good[2..]),
            &format!("{later}x"),
            &good[..54],
            &good.replace('-', "_"),
            &format!("{good} "),
        ] {
            assert_eq!(context(bad, None), None, "{bad}");
        }
    }

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
