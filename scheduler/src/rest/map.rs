//! Map over REST: inputs stream in while outcomes stream out, in constant memory.

use super::{
    body::{Body, Lines},
    calls::{NDJSON, terms},
    functions::instance_of,
    lines,
    problem::{Answer, Problem, query},
};
use crate::{
    actor::watch::Update,
    api::{Api, submit::Mapping},
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use capstan_common::{
    call::CallState,
    input::{Outcome, Payload},
    refusal::{Code, Refusal},
};
use capstan_scheduler_core::{event::FailFast, record::Entry};
use capstan_verb::{
    call::{Line, Terms, error_json},
    cursor::Cursor,
};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::mpsc;

/// Inputs that were read and wait for credit, at most about.
const READ_AHEAD: usize = 2048;
/// Bytes of inputs that were read and wait for credit.
const READ_AHEAD_BYTES: usize = 4 << 20;
/// Bytes of lines that are given to the client at once, about: what follows is read when those have gone.
const PIECE_BYTES: usize = 256 << 10;

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum OnError {
    Raise,
    Collect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapQuery {
    ordered: Option<bool>,
    on_error: Option<OnError>,
    outputs: Option<bool>,
}

/// A map's stream while it runs.
struct Stream {
    api: web::Data<Api>,
    body: Body,
    body_done: bool,
    closed: bool,
    lines: Lines,
    /// Read, waiting for credit.
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    credit: u64,
    sent: u64,
    map: Mapping,
    updates: mpsc::Receiver<Update>,
    ordered: bool,
    raise: bool,
    outputs: bool,
    /// Ended before their turn.
    early: BTreeMap<u64, Outcome>,
    /// What has its turn and no line yet.
    ready: VecDeque<(u64, Outcome)>,
    next: u64,
    succeeded: u64,
    failed: u64,
    out: BytesMut,
    taken: u64,
    over: bool,
    /// Not all inputs were taken.
    cut: bool,
}

pub async fn map(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    body: web::Payload,
) -> Answer {
    let key = api.resolve(instance_of(&path)?).await?;
    let asked: MapQuery = query(&request)?;
    let raise = asked.on_error != Some(OnError::Collect);
    let ordered = asked.ordered.unwrap_or(true);
    let on_error = match (raise, ordered && asked.outputs != Some(false)) {
        (false, _) => FailFast::No,
        (true, false) => FailFast::AtOnce,
        (true, true) => FailFast::InOrder,
    };
    let outputs = asked.outputs.unwrap_or(true);
    let mut body = Body::of(&request, body)?.live();
    let mut lines = Lines::new(api.config().payload_max_bytes);
    // The first input is read before the answer begins: a body that is wrong from the start gets a proper refusal.
    api.function(&key).await?;
    let (first, body_done) = first_inputs(&mut body, &mut lines).await?;
    // A stream cannot be answered a second time: the contract gives keys to invoke, spawn and spawn_map only.
    let terms = Terms { key: None, ..terms(&request)? };
    let (map, updates) = api.map(&key, &terms, on_error, outputs).await?;
    let call = ("Capstan-Call-Id", map.call.to_string());
    let stream = Stream {
        api,
        body,
        body_done,
        closed: false,
        lines,
        waiting_bytes: first.iter().map(Bytes::len).sum(),
        waiting: first.into(),
        credit: 0,
        sent: 0,
        map,
        updates,
        ordered,
        raise,
        outputs,
        early: BTreeMap::new(),
        ready: VecDeque::new(),
        next: 0,
        succeeded: 0,
        failed: 0,
        out: BytesMut::new(),
        taken: 0,
        over: false,
        cut: false,
    };
    Ok(HttpResponse::Ok().insert_header(call).content_type(NDJSON).streaming(Box::pin(given(stream))))
}

/// Reads until there is an input, or the body ends. Whether it has.
async fn first_inputs(body: &mut Body, lines: &mut Lines) -> Result<(Vec<Bytes>, bool), Problem> {
    let mut first = Vec::new();
    while first.is_empty() {
        match body.next().await? {
            Some(chunk) => {
                lines.take(chunk, &mut first)?;
                body.holds(lines.held())?;
            }
            None => {
                lines.end(&mut first)?;
                return Ok((first, true));
            }
        }
    }
    Ok((first, false))
}

/// A map's answer, piece by piece.
fn given(mut stream: Stream) -> impl futures_util::Stream<Item = Result<Bytes, Problem>> {
    async_stream::stream! {
        while !stream.over {
            // News come when what is ready has been given: a piece at a time, as fast as the client reads.
            let turned = if stream.ready.is_empty() { stream.turn().await } else { Ok(()) };
            let written = match turned {
                Ok(()) => stream.write_ready().await,
                failed => failed,
            };
            if let Err(problem) = written {
                stream.fail(&problem);
            }
            if !stream.out.is_empty() {
                let chunk = stream.out.split().freeze();
                // Comes back when the client has room for more.
                yield Ok::<_, Problem>(chunk);
            }
            stream.collect().await;
        }
        if !stream.out.is_empty() {
            yield Ok(stream.out.split().freeze());
        }
    }
}

/// The last line of an answer that had begun when something went wrong.
pub fn last_line(refusal: &Refusal) -> String {
    let (code, title) = (refusal.code.text(), refusal.code.title());
    let error = json!({"error": {"code": code, "type": title, "message": refusal.detail, "traceback": null}});
    format!("{error}\n")
}

impl Stream {
    /// Sends what has credit, then waits for whatever comes first: more of the body, or news.
    async fn turn(&mut self) -> Result<(), Problem> {
        self.send().await?;
        if self.body_done && self.waiting.is_empty() && !self.closed {
            self.closed = true;
            self.map.close().await?;
        }
        let reading = !self.body_done && self.waiting.len() < READ_AHEAD && self.waiting_bytes < READ_AHEAD_BYTES;
        tokio::select! {
            biased;
            update = self.updates.recv() => self.take(update).await,
            chunk = self.body.next(), if reading => self.read(chunk?),
        }
    }

    async fn send(&mut self) -> Result<(), Problem> {
        let count = self.waiting.len().min(self.credit as usize);
        if count == 0 {
            return Ok(());
        }
        let mut payloads: Vec<Payload> = Vec::with_capacity(count);
        for input in self.waiting.drain(..count) {
            self.waiting_bytes -= input.len();
            payloads.push(self.api.map_payload(self.map.call, self.sent, input).await?);
            self.sent += 1;
        }
        self.credit -= count as u64;
        self.body.holds(self.lines.held() + self.waiting_bytes)?;
        match self.map.send(payloads).await {
            Err(refusal) if refusal.code == Code::Cancelled => {
                // The map takes nothing more, after an error or a cancel; what became of it is told by the news that follow.
                self.cut |= !self.waiting.is_empty() || !self.body_done || count > 0;
                self.waiting.clear();
                self.waiting_bytes = 0;
                (self.body_done, self.closed) = (true, true);
                Ok(())
            }
            sent => Ok(sent?),
        }
    }

    fn read(&mut self, chunk: Option<Bytes>) -> Result<(), Problem> {
        let mut inputs = Vec::new();
        match chunk {
            Some(chunk) => self.lines.take(chunk, &mut inputs)?,
            None => {
                self.body_done = true;
                self.lines.end(&mut inputs)?;
            }
        }
        self.waiting_bytes += inputs.iter().map(Bytes::len).sum::<usize>();
        self.waiting.extend(inputs);
        self.body.holds(self.lines.held() + self.waiting_bytes)
    }

    async fn take(&mut self, update: Option<Update>) -> Result<(), Problem> {
        match update {
            Some(Update::Credit(count)) => self.credit += count,
            Some(Update::Ended(entries)) => {
                for entry in entries.iter() {
                    self.ended(entry);
                    if self.over {
                        return Ok(());
                    }
                }
            }
            Some(Update::Closed(CallState::Cancelled)) if self.cut || !self.body_done || !self.waiting.is_empty() => {
                let detail =
                    "the map was cancelled before all its inputs were taken; those that were are told of above";
                return Err(Problem::new(Code::Cancelled, detail));
            }
            Some(Update::Closed(_)) => self.end(),
            None => return Err(Problem::new(Code::Unavailable, "the scheduler is stopping")),
        }
        Ok(())
    }

    fn ended(&mut self, entry: &Entry) {
        for index in entry.index..entry.index + entry.count {
            let outcome = &entry.outcome;
            match outcome {
                Outcome::Succeeded(_) => self.succeeded += 1,
                _ => self.failed += 1,
            }
            let raised = self.raise && matches!(outcome, Outcome::Failed(_));
            if !self.outputs && !raised {
                self.taken += 1;
            } else if !self.outputs {
                self.over = true;
                self.write_counts(Some((index, outcome)));
            } else if !self.ordered {
                self.ready.push_back((index, outcome.clone()));
            } else {
                self.early.insert(index, outcome.clone());
                while let Some(outcome) = self.early.remove(&self.next) {
                    self.ready.push_back((self.next, outcome));
                    self.next += 1;
                }
            }
            if self.over {
                return;
            }
        }
    }

    /// Writes lines of what is ready, as many as make a piece: all that waited for a slow first one may be a thousand outputs.
    async fn write_ready(&mut self) -> Result<(), Problem> {
        while self.out.len() < PIECE_BYTES
            && !self.over
            && let Some((index, outcome)) = self.ready.pop_front()
        {
            self.write(index, outcome).await?;
        }
        Ok(())
    }

    /// Writes a line; the one of an error that is raised is the last.
    async fn write(&mut self, index: u64, outcome: Outcome) -> Result<(), Problem> {
        let raised = self.raise && matches!(outcome, Outcome::Failed(_));
        let line = Line { index, outcome, cursor: Cursor::Index(index) };
        let output = match lines::shown(&line.outcome) {
            None => Bytes::new(),
            Some(output) => self.api.bytes_of(output).await?,
        };
        lines::write(&line, &output, false, &mut self.out);
        self.taken += 1;
        self.over |= raised;
        Ok(())
    }

    fn end(&mut self) {
        self.over = true;
        self.map.ended();
        self.write_counts(None);
    }

    /// Without outputs there is only a last line; an error that ended the map stands in it.
    fn write_counts(&mut self, raised: Option<(u64, &Outcome)>) {
        if !self.outputs {
            let mut last = json!({"done": true, "succeeded": self.succeeded, "failed": self.failed});
            if let Some((index, Outcome::Failed(failure))) = raised {
                last["index"] = json!(index);
                last["error"] = error_json(failure);
            }
            self.out.extend_from_slice(format!("{last}\n").as_bytes());
        }
    }

    /// The answer has begun: the last line tells what is wrong.
    fn fail(&mut self, problem: &Problem) {
        self.out.extend_from_slice(last_line(problem.refusal()).as_bytes());
        self.over = true;
    }

    async fn collect(&mut self) {
        if self.taken > 0 && !self.over {
            let taken = std::mem::take(&mut self.taken);
            // A function that is gone ends the stream by itself.
            let _ = self.map.collect(taken).await;
        }
    }
}
