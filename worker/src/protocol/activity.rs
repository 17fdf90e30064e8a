//! Requests that reach a container past Capstan, by the counter that it shows in its own Prometheus metrics (SPEC P02).

use super::http::Server;
use capstan_common::function::Activity;
use std::{io, time::Duration};

/// The longest page of metrics that is read.
const PAGE_MAX: usize = 8 << 20;

/// Reads a server's counter again and again, for as long as the answer is awaited. What cannot be read is not told: whoever
/// waits for it then knows that nothing is known.
pub async fn watch(server: Server, activity: Activity, tell: impl AsyncFn(u64)) {
    let mut told = false;
    loop {
        match server.get(&activity.path, PAGE_MAX).await.and_then(|page| counter(&page, &activity.counter)) {
            Ok(value) => {
                told = false;
                tell(value).await;
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(path = activity.path, %error, "a container's activity cannot be read; it keeps its container");
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(activity.interval_s.ms)).await;
    }
}

/// All series of a counter in a page of metrics, added up. A page without it is an error: unknown is not zero.
///
/// Read by hand: of the crates for this text form none that may be linked here takes the colon in `vllm:…`.
fn counter(page: &[u8], name: &str) -> io::Result<u64> {
    let text = String::from_utf8_lossy(page);
    let values: Option<Vec<f64>> = text.lines().filter_map(|line| value(line, name)).collect();
    match values.as_deref() {
        None => Err(io::Error::other(format!("a series of `{name}` cannot be read"))),
        Some([]) => Err(io::Error::other(format!("there is no `{name}` in it"))),
        Some(values) if values.iter().any(|value| *value < 0.0) => {
            Err(io::Error::other(format!("`{name}` is below zero, which no counter is")))
        }
        Some(values) => Ok(values.iter().sum::<f64>() as u64),
    }
}

/// The value of a line `name{labels} value timestamp`, if it is one of this name; `Some(None)` where it cannot be read.
fn value(line: &str, name: &str) -> Option<Option<f64>> {
    let rest = line.trim_start().strip_prefix(name)?;
    let rest = match rest.strip_prefix('{') {
        Some(labels) => end_of_labels(labels).map(|end| &labels[end..]),
        None => Some(rest.strip_prefix([' ', '\t'])?),
    };
    let number = rest.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<f64>().ok());
    Some(number.filter(|number| number.is_finite()))
}

/// Where the labels end: a brace inside of quotes is a part of a label's value.
fn end_of_labels(labels: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, character) in labels.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::counter;

    const VLLM: &str = "vllm:request_success_total";

    #[test]
    fn all_series_of_the_counter_are_added_up_and_none_is_not_zero() {
        // SPEC P02
        let page = br#"# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop",model_name="m"} 41.0
vllm:request_success_total{finished_reason="le}ng\"th",model_name="m"} 1.0 1700000000000
vllm:request_success_total_of_others{model_name="m"} 7.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="m"} 3.0
"#;
        assert_eq!(counter(page, VLLM).unwrap(), 42);
        assert_eq!(counter(b"vllm:request_success_total 0\n", VLLM).unwrap(), 0);
        let bad = [
            &b""[..],
            b"vllm:request_success 3\n",
            b"<html>not found</html>",
            b"\xff\xfe",
            b"vllm:request_success_total -3\n",
            b"vllm:request_success_total{a=\"} 1\n",
            b"vllm:request_success_total{a=\"1\"} 1\nvllm:request_success_total{a=\"2\"} NaN\n",
        ];
        for unknown in bad {
            assert!(counter(unknown, VLLM).is_err());
        }
    }
}
