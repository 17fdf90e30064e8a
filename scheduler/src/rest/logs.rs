//! What containers wrote, as text over REST.

use super::{
    ask::asker,
    cluster::container_of,
    functions::instance_of,
    problem::{Answer, Problem, query},
};
use crate::{
    clock,
    route::{Asker, Route},
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{BufMut, Bytes, BytesMut};
use capstan_common::{
    id::{ContainerId, FunctionKey},
    refusal::Refusal,
    time::Time,
};
use capstan_verb::{
    container, function,
    log::{Chunk, LogsView, Part},
};
use chrono::DateTime;
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};

/// How long one question waits for more; another scheduler is asked within the time that it has for an answer.
const WAIT_MS: u64 = 1_000;
/// The longest line that is put together.
const LINE_BYTES: usize = 256 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogsQuery {
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    timestamps: bool,
    tail: Option<usize>,
    since: Option<String>,
}

/// Since when: a time, or so many seconds back. In milliseconds since 1970.
fn since_ms(text: &str) -> Result<u64, Refusal> {
    let now = clock::now().0 / 1000;
    if let Ok(seconds) = text.parse::<f64>()
        && seconds >= 0.0
    {
        return Ok(now.saturating_sub((seconds * 1000.0) as u64));
    }
    let read = DateTime::parse_from_rfc3339(text).ok().and_then(|at| u64::try_from(at.timestamp_millis()).ok());
    let shown: String = text.chars().take(40).collect();
    read.ok_or_else(|| Refusal::field("since", format!("must be an RFC 3339 time, or seconds back, is `{shown}`")))
}

/// Whose output.
#[derive(Clone)]
enum Of {
    Container(ContainerId),
    Function(FunctionKey),
}

impl Of {
    async fn ask(&self, route: &Route, who: &Asker, part: Part) -> Result<LogsView, Refusal> {
        match self.clone() {
            Self::Container(container) => route.ask(who, container::Logs { container, part }).await,
            Self::Function(key) => route.ask(who, function::Logs { key, part }).await,
        }
    }
}

/// Puts chunks together to lines.
struct Lines {
    /// Whether each line names its container.
    names: bool,
    timestamps: bool,
    /// What has begun, by container: when, and the line so far.
    open: BTreeMap<ContainerId, (u64, BytesMut)>,
}

impl Lines {
    /// The lines that a chunk ends. As it is where nothing is put before them.
    fn take(&mut self, chunk: Chunk, out: &mut VecDeque<Bytes>) {
        if !self.names && !self.timestamps {
            out.push_back(chunk.bytes);
            return;
        }
        let (_, open) = self.open.entry(chunk.container).or_insert_with(|| (chunk.at_ms, BytesMut::new()));
        let mut rest = open.split();
        rest.extend_from_slice(&chunk.bytes);
        while let Some(end) = memchr::memchr(b'\n', &rest) {
            let line = rest.split_to(end + 1);
            out.push_back(self.line(chunk.container, chunk.at_ms, &line));
        }
        if rest.len() > LINE_BYTES {
            out.push_back(self.line(chunk.container, chunk.at_ms, &rest));
            rest.clear();
        }
        self.open.insert(chunk.container, (chunk.at_ms, rest));
    }

    /// What has no end of line is given as it is.
    fn end(&mut self, out: &mut VecDeque<Bytes>) {
        for (container, (at_ms, rest)) in std::mem::take(&mut self.open) {
            if !rest.is_empty() {
                out.push_back(self.line(container, at_ms, &rest));
            }
        }
    }

    fn line(&self, container: ContainerId, at_ms: u64, text: &[u8]) -> Bytes {
        let mut line = BytesMut::with_capacity(text.len() + 64);
        if self.timestamps {
            line.put_slice(clock::rfc3339(Time(at_ms * 1000)).as_bytes());
            line.put_u8(b' ');
        }
        if self.names {
            line.put_slice(container.to_string().as_bytes());
            line.put_u8(b' ');
        }
        line.put_slice(text.strip_suffix(b"\n").unwrap_or(text));
        line.put_u8(b'\n');
        line.freeze()
    }
}

/// Bytes of last lines, at most.
const TAIL_BYTES: usize = 8 << 20;

/// The last lines of chunks that are not cut at lines.
fn last_lines(pieces: VecDeque<Bytes>, count: usize) -> VecDeque<Bytes> {
    let all: Vec<u8> = pieces.into_iter().flatten().collect();
    let all = &all[all.len().saturating_sub(TAIL_BYTES)..];
    let ended = all.strip_suffix(b"\n").unwrap_or(all);
    let from =
        if count == 0 { all.len() } else { memchr::memrchr_iter(b'\n', ended).nth(count - 1).map_or(0, |at| at + 1) };
    [Bytes::copy_from_slice(&all[from..])].into()
}

async fn text(route: web::Data<Route>, request: &HttpRequest, of: Of) -> Answer {
    let LogsQuery { follow, timestamps, tail, since } = query(request)?;
    let since_ms = since.as_deref().map(since_ms).transpose()?.unwrap_or(0);
    let who = asker(request);
    let mut lines = Lines { names: matches!(of, Of::Function(_)), timestamps, open: BTreeMap::new() };
    // What is there is read before the answer begins: what may not be read gets a proper refusal.
    let (mut out, mut part) = (VecDeque::new(), Part { since_ms, ..Part::default() });
    let mut page = of.ask(&route, &who, part).await?;
    loop {
        part.after = page.next;
        page.chunks.drain(..).for_each(|chunk| lines.take(chunk, &mut out));
        // All of it is given page by page; of its last lines nothing is known before the last page.
        let Some(tail) = tail.filter(|_| page.has_more) else { break };
        out = last_lines(out, tail);
        page = of.ask(&route, &who, part).await?;
    }
    let (mut has_more, mut ended) = (page.has_more, page.ended);
    if !has_more && (!follow || ended) {
        lines.end(&mut out);
    }
    if let Some(tail) = tail {
        out = last_lines(out, tail);
    }
    let stream = async_stream::stream! {
        loop {
            while let Some(piece) = out.pop_front() {
                yield Ok::<_, Problem>(piece);
            }
            if !has_more && (!follow || ended) {
                return;
            }
            part.wait_ms = if has_more { 0 } else { WAIT_MS };
            match of.ask(&route, &who, part).await {
                Ok(page) => {
                    (part.after, ended, has_more) = (page.next, page.ended, page.has_more);
                    page.chunks.into_iter().for_each(|chunk| lines.take(chunk, &mut out));
                    if !has_more && (!follow || ended) {
                        lines.end(&mut out);
                    }
                }
                // The function is gone, or its scheduler: what there was has been given.
                Err(_) => return,
            }
        }
    };
    Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").streaming(Box::pin(stream)))
}

pub async fn of_container(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let of = Of::Container(container_of(&path)?);
    text(route, &request, of).await
}

pub async fn of_function(route: web::Data<Route>, request: HttpRequest, path: web::Path<(String, String)>) -> Answer {
    let of = Of::Function(instance_of(&path)?);
    text(route, &request, of).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines, chunks: &[(u64, &'static str)]) -> String {
        let mut out = VecDeque::new();
        for (container, text) in chunks {
            let chunk = Chunk { container: ContainerId(*container), at_ms: 0, bytes: Bytes::from(*text) };
            lines.take(chunk, &mut out);
        }
        lines.end(&mut out);
        String::from_utf8(out.into_iter().flatten().collect()).unwrap()
    }

    #[test]
    fn lines_of_several_containers_are_whole_and_named() {
        let mut named = Lines { names: true, timestamps: false, open: BTreeMap::new() };
        let told = all(&mut named, &[(1, "a"), (2, "x\ny"), (1, "b\nc\n"), (2, "z")]);
        let (one, two) = (ContainerId(1), ContainerId(2));
        assert_eq!(told, format!("{two} x\n{one} ab\n{one} c\n{two} yz\n"));
        let mut plain = Lines { names: false, timestamps: false, open: BTreeMap::new() };
        assert_eq!(all(&mut plain, &[(1, "a"), (1, "b\nc")]), "ab\nc");
    }

    #[test]
    fn a_tail_has_as_many_lines_as_are_asked_for_or_there_are() {
        let tail = |text: &'static str, count| {
            String::from_utf8(last_lines([Bytes::from(text)].into(), count)[0].to_vec()).unwrap()
        };
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!((tail("a\n", 9), tail("a\n", 0), tail("", 3)), ("a\n".into(), String::new(), String::new()));
    }
}
