//! Request bodies: one JSON value with a bound, or lines of them, never collected first.

use super::problem::Problem;
use actix_web::web;
use bytes::{Bytes, BytesMut};
use capstan_common::refusal::Code;
use futures_util::StreamExt;
use serde_json::value::RawValue;
use std::time::Duration;

/// A body that sends nothing for so long is given up.
const IDLE: Duration = Duration::from_secs(30);

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::PayloadTooLarge, format!("at most {limit} bytes are taken here, this has more"))
}

/// The next piece of a body.
pub async fn next_chunk(body: &mut web::Payload, idle: Option<Duration>) -> Result<Option<Bytes>, Problem> {
    let next = match idle {
        Some(idle) => tokio::time::timeout(idle, body.next())
            .await
            .map_err(|_| Problem::new(Code::Malformed, "the request's body sent nothing for 30 seconds"))?,
        None => body.next().await,
    };
    next.transpose()
        .map_err(|error| Problem::new(Code::Malformed, format!("the request's body cannot be read: {error}")))
}

/// A whole body of at most `limit` bytes.
pub async fn whole(mut body: web::Payload, limit: usize) -> Result<Bytes, Problem> {
    let Some(first) = next_chunk(&mut body, Some(IDLE)).await? else {
        return Ok(Bytes::new());
    };
    if first.len() > limit {
        return Err(too_large(limit));
    }
    let Some(second) = next_chunk(&mut body, Some(IDLE)).await? else {
        return Ok(first);
    };
    let mut all = BytesMut::from(&first[..]);
    let mut next = Some(second);
    while let Some(chunk) = next {
        if all.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        all.extend_from_slice(&chunk);
        next = next_chunk(&mut body, Some(IDLE)).await?;
    }
    Ok(all.freeze())
}

/// The one JSON value of a body, as it was written.
pub async fn json(body: web::Payload, limit: usize) -> Result<Bytes, Problem> {
    let bytes = whole(body, limit).await?;
    checked(&bytes).map_err(|error| Problem::new(Code::Malformed, format!("the body is not JSON: {error}")))
}

/// The JSON value in `bytes` without the space around it.
fn checked(bytes: &Bytes) -> Result<Bytes, serde_json::Error> {
    let value: &RawValue = serde_json::from_slice(bytes)?;
    Ok(bytes.slice_ref(value.get().as_bytes()))
}

/// Lines of JSON out of pieces of a body.
pub struct Lines {
    rest: BytesMut,
    searched: usize,
    limit: usize,
    number: u64,
}

impl Lines {
    /// Lines of at most `limit` bytes each.
    pub fn new(limit: usize) -> Self {
        Self { rest: BytesMut::new(), searched: 0, limit, number: 0 }
    }

    /// Takes a piece; puts its whole lines into `out`. Blank lines are passed over.
    pub fn take(&mut self, mut chunk: Bytes, out: &mut Vec<Bytes>) -> Result<(), Problem> {
        if !self.rest.is_empty() {
            let Some(end) = memchr::memchr(b'\n', &chunk) else {
                self.rest.extend_from_slice(&chunk);
                return self.check_rest();
            };
            self.rest.extend_from_slice(&chunk.split_to(end + 1));
            let line = self.rest.split().freeze();
            self.searched = 0;
            self.line(line, out)?;
        }
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', &chunk.clone()) {
            self.line(chunk.slice(from..end), out)?;
            from = end + 1;
        }
        self.rest.extend_from_slice(&chunk[from..]);
        self.check_rest()
    }

    /// The body ended: what is left is the last line.
    pub fn end(&mut self, out: &mut Vec<Bytes>) -> Result<(), Problem> {
        let line = self.rest.split().freeze();
        self.line(line, out)
    }

    fn check_rest(&self) -> Result<(), Problem> {
        if self.rest.len() > self.limit + 2 {
            return Err(self.told(&too_large(self.limit), self.number + 1));
        }
        Ok(())
    }

    fn line(&mut self, line: Bytes, out: &mut Vec<Bytes>) -> Result<(), Problem> {
        self.number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let value = checked(&line)
            .map_err(|error| Problem::new(Code::Malformed, format!("line {} is not JSON: {error}", self.number)))?;
        if value.len() > self.limit {
            return Err(self.told(&too_large(self.limit), self.number));
        }
        out.push(value);
        Ok(())
    }

    fn told(&self, problem: &Problem, line: u64) -> Problem {
        let refusal = problem.refusal();
        Problem::new(refusal.code, format!("line {line}: {}", refusal.detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str, cuts: &[usize], limit: usize) -> Result<Vec<String>, String> {
        let (mut lines, mut out, mut at) = (Lines::new(limit), Vec::new(), 0);
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (text.len() + 1)).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        for cut in cuts {
            lines.take(bytes.slice(at..cut), &mut out).map_err(|p| p.to_string())?;
            at = cut;
        }
        lines.end(&mut out).map_err(|p| p.to_string())?;
        Ok(out.iter().map(|b| String::from_utf8(b.to_vec()).unwrap()).collect())
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_body_is_cut(values in prop::collection::vec(0u32..100_000, 0..20), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
            let text: String = values.iter().map(|v| format!(" {v} \r\n")).collect();
            let expected: Vec<_> = values.iter().map(u32::to_string).collect();
            prop_assert_eq!(split(&text, &cuts, 100), Ok(expected));
        }
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_a_long_one_by_the_limit() {
        assert_eq!(split("1\n\n2", &[], 9), Ok(vec!["1".into(), "2".into()]));
        assert!(split("1\n\n{]\n", &[3], 9).unwrap_err().starts_with("line 3 is not JSON"));
        assert!(split("\"\u{fffd}", &[], 99).is_err());
        assert!(split("1234567890", &[], 10).is_ok());
        assert!(split("12345678901", &[5], 10).unwrap_err().contains("at most 10 bytes"));
    }
}
