//! Request bodies: one JSON value with a bound, or lines of them, never collected first.

use super::{
    budget::{Budget, Share},
    gate::Visitor,
    problem::Problem,
};
use actix_web::{HttpRequest, http::header, web};
use bytes::{Bytes, BytesMut};
use capstan_common::refusal::Code;
use capstan_verb::payload::Input;
use futures_util::StreamExt;
use std::time::{Duration, Instant};

/// A body that sends nothing for so long is given up.
const IDLE: Duration = Duration::from_secs(30);
/// A body may take so long, and longer by what comes at this rate.
const PATIENCE: Duration = Duration::from_secs(30);
const RATE_BYTES: u64 = 16 << 10;

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::PayloadTooLarge, format!("at most {limit} bytes are taken here, this has more"))
}

/// Bounds of single inputs.
pub struct Limits {
    /// Bytes of one, at most.
    pub bytes: usize,
}

/// What a request reads: its pieces as they come, within a share of the memory that all bodies have together.
pub struct Body {
    payload: web::Payload,
    share: Share,
    begun: Instant,
    read: u64,
    /// Whether it may be as slow as it likes: inputs of a map come when they come.
    is_live: bool,
}

/// What the connection itself holds of a body that does not come at once.
const CONNECTION: usize = 64 << 10;

impl Body {
    /// The body of a request.
    ///
    /// # Errors
    /// It is encoded in a way that nobody asked for.
    pub fn of(request: &HttpRequest, payload: web::Payload) -> Result<Self, Problem> {
        if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            let shown = String::from_utf8_lossy(encoding.as_bytes()).chars().take(40).collect::<String>();
            let detail = format!("Content-Encoding `{shown}` is not taken: send the body as it is");
            return Err(Problem::new(Code::UnsupportedMedia, detail));
        }
        let budget = request.app_data::<web::Data<Budget>>().cloned();
        let budget = budget.ok_or_else(|| Problem::new(Code::Internal, "there is no budget for bodies"))?;
        let share = budget.into_inner().share(&Visitor::of(request).token);
        Ok(Self { payload, share, begun: Instant::now(), read: 0, is_live: false })
    }

    /// The same of a body that may pause.
    pub fn live(mut self) -> Self {
        self.is_live = true;
        self
    }

    /// The next piece.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let next = if self.is_live {
            self.payload.next().await
        } else {
            let allowed = PATIENCE + Duration::from_secs(self.read / RATE_BYTES);
            let left = allowed.saturating_sub(self.begun.elapsed());
            let next = tokio::time::timeout(IDLE.min(left), self.payload.next()).await;
            next.map_err(|_| {
                let told = "the request's body came too slowly: it may pause for 30 seconds at most, and must come at 16 KiB a second";
                Problem::new(Code::Malformed, told)
            })?
        };
        let piece = next
            .transpose()
            .map_err(|error| Problem::new(Code::Malformed, format!("the request's body cannot be read: {error}")))?;
        self.read += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Ok(piece)
    }

    /// So many bytes of it are held in memory by now.
    pub fn holds(&mut self, bytes: usize) -> Result<(), Problem> {
        self.share.resize(bytes)
    }

    /// All of it, if that is at most `limit` bytes.
    pub async fn whole(mut self, limit: usize) -> Result<Bytes, Problem> {
        let Some(first) = self.next().await? else {
            return Ok(Bytes::new());
        };
        if first.len() > limit {
            return Err(too_large(limit));
        }
        self.holds(first.len())?;
        let Some(second) = self.next().await? else {
            return Ok(first);
        };
        let mut all = Blocks::default();
        all.extend(&first);
        let mut next = Some(second);
        while let Some(chunk) = next {
            if all.len + chunk.len() > limit {
                return Err(too_large(limit));
            }
            all.extend(&chunk);
            self.holds(all.held() + CONNECTION)?;
            next = self.next().await?;
        }
        Ok(all.join())
    }

    /// The one JSON value of it, as it was written.
    pub async fn json(self, limit: usize) -> Result<Input, Problem> {
        let bytes = self.whole(limit).await?;
        Input::json(&bytes)
            .map_err(|error| Problem::new(Code::Malformed, format!("the body is not JSON: {error}{}", bom(&bytes))))
    }
}

/// Bytes that grow in blocks of one size. One buffer that is doubled again and again leaves holes behind which the allocator does
/// not give back: a thousand half-sent bodies cost several times what they hold.
#[derive(Debug, Default)]
struct Blocks {
    blocks: Vec<BytesMut>,
    len: usize,
}

impl Blocks {
    const SIZE: usize = 64 << 10;

    fn extend(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            if self.blocks.last().is_none_or(|last| last.len() == Self::SIZE) {
                self.blocks.push(BytesMut::with_capacity(Self::SIZE));
            }
            let Some(last) = self.blocks.last_mut() else { return };
            let (now, later) = bytes.split_at(bytes.len().min(Self::SIZE - last.len()));
            last.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Bytes of memory.
    fn held(&self) -> usize {
        self.blocks.len() * Self::SIZE
    }

    /// All of it in one; empty afterwards.
    fn join(&mut self) -> Bytes {
        let mut blocks = std::mem::take(&mut self.blocks).into_iter();
        let len = std::mem::take(&mut self.len);
        match (blocks.next(), blocks.len()) {
            (None, _) => Bytes::new(),
            (Some(only), 0) => only.freeze(),
            (Some(first), _) => {
                let mut all = BytesMut::with_capacity(len);
                all.extend_from_slice(&first);
                for block in blocks {
                    all.extend_from_slice(&block);
                }
                all.freeze()
            }
        }
    }
}

/// What a byte order mark at the begin may be about.
fn bom(bytes: &[u8]) -> &'static str {
    if bytes.starts_with(b"\xef\xbb\xbf") { " (it begins with a byte order mark: leave that out)" } else { "" }
}

/// Lines of JSON out of pieces of a body.
pub struct Lines {
    rest: Blocks,
    limit: usize,
    number: u64,
}

impl Lines {
    /// Lines of at most `limit` bytes each.
    pub fn new(limit: usize) -> Self {
        Self { rest: Blocks::default(), limit, number: 0 }
    }

    /// Takes a piece; puts its whole lines into `out`. Blank lines are passed over.
    pub fn take(&mut self, mut chunk: Bytes, out: &mut Vec<Bytes>) -> Result<(), Problem> {
        if self.rest.len > 0 {
            let Some(end) = memchr::memchr(b'\n', &chunk) else {
                self.rest.extend(&chunk);
                return self.check_rest();
            };
            self.rest.extend(&chunk.split_to(end + 1));
            let line = self.rest.join();
            self.line(line, out)?;
        }
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', &chunk.clone()) {
            self.line(chunk.slice(from..end), out)?;
            from = end + 1;
        }
        self.rest.extend(&chunk[from..]);
        self.check_rest()
    }

    /// Bytes of a line that has not ended.
    pub fn held(&self) -> usize {
        self.rest.held()
    }

    /// The body ended: what is left is the last line.
    pub fn end(&mut self, out: &mut Vec<Bytes>) -> Result<(), Problem> {
        let line = self.rest.join();
        self.line(line, out)
    }

    fn check_rest(&self) -> Result<(), Problem> {
        if self.rest.len > self.limit + 2 {
            return Err(self.told(&too_large(self.limit), self.number + 1));
        }
        Ok(())
    }

    fn line(&mut self, line: Bytes, out: &mut Vec<Bytes>) -> Result<(), Problem> {
        self.number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let value = Input::json(&line).map_err(|error| {
            Problem::new(Code::Malformed, format!("line {} is not JSON: {error}{}", self.number, bom(&line)))
        })?;
        let value = value.into_bytes();
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
    fn blocks_hold_what_was_put_in_whatever_the_pieces() {
        let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        for piece in [1_000, Blocks::SIZE, 3 * Blocks::SIZE, 200_000] {
            let mut blocks = Blocks::default();
            bytes.chunks(piece).for_each(|piece| blocks.extend(piece));
            assert_eq!((blocks.len, blocks.held()), (200_000, 4 * Blocks::SIZE));
            assert_eq!(blocks.join(), bytes);
            assert_eq!((blocks.len, blocks.join().len()), (0, 0));
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
