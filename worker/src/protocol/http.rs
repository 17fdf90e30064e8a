//! The `http` protocol: a long-lived server gets each input, or each batch, as `POST /`.

use super::{Results, all_failed, input, keep, one_line, timed_out, too_large};
use bytes::{BufMut, Bytes, BytesMut};
use capstan_blob::Blobs;
use capstan_common::{
    id::LeaseId,
    input::{FAILURE_BYTES, Failure, FailureKind},
    order::Assignment,
    trace,
};
use capstan_net::ServerStream;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use std::{
    cell::RefCell,
    io,
    net::Ipv4Addr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The first pause between two looks at a starting server. Later ones are a tenth of the time that it has taken so far.
const LOOK: Duration = Duration::from_millis(1);
/// The longest pause while nothing listens: a look costs nobody anything.
const LOOK_MAX: Duration = Duration::from_millis(100);
/// The longest pause once the server answers that it is not ready: it may log each look.
const ASK_MAX: Duration = Duration::from_secs(1);
/// The longest answer to a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that is not ready by then is told of.
const TELL: Duration = Duration::from_secs(1);
/// A kept connection that ends so soon after a request, without a byte of an answer, was closed before the request came.
const STALE: Duration = Duration::from_secs(1);
/// Where a server says whether it is ready.
const HEALTH: &str = "/healthz";

/// A connection, and how many bytes the server has sent over it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    heard: Arc<AtomicU64>,
}

/// A server on this machine, with its idle connections.
#[derive(Clone)]
pub struct Server {
    port: u16,
    host: header::HeaderValue,
    idle: Rc<RefCell<Vec<Connection>>>,
    /// What the last look at it found.
    seen: Rc<RefCell<String>>,
    blobs: Blobs,
    output_max: usize,
    timeout_ms: u64,
}

/// Why an attempt has no result of its own.
#[derive(Debug)]
pub enum Broken {
    /// The attempt failed.
    Failed(Failure),
    /// The connection broke; if the container ended, its end says more.
    Connection(String),
}

impl Server {
    /// A server that listens, or will, on a port.
    pub fn new(port: u16, blobs: Blobs, output_max: usize, timeout_ms: u64) -> Self {
        let host = format!("127.0.0.1:{port}");
        Self {
            port,
            host: header::HeaderValue::from_str(&host).unwrap_or(header::HeaderValue::from_static("localhost")),
            idle: Rc::default(),
            seen: Rc::default(),
            blobs,
            output_max,
            timeout_ms,
        }
    }

    /// Comes back when the server takes inputs: `GET /healthz` answers below 500, or 501 as a server does that knows no GET.
    /// `tell` hears what was found instead, once that takes long and whenever it changes.
    pub async fn ready(&self, tell: impl AsyncFn(String)) {
        let begun = Instant::now();
        let mut told = String::new();
        loop {
            let look = tokio::time::timeout(LOOK_TIMEOUT, self.ask(HEALTH)).await;
            let status = match &look {
                Ok(Ok(response)) => Some(response.status()),
                _ => None,
            };
            if status.is_some_and(|status| status.as_u16() < 500 || status == StatusCode::NOT_IMPLEMENTED) {
                return;
            }
            *self.seen.borrow_mut() = match look {
                Ok(Ok(response)) => format!("answered {}; 501 or below 500 is ready", response.status()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    format!(
                        "found nothing that listens there; the program must listen on $PORT, which is {}",
                        self.port
                    )
                }
                Ok(Err(error)) => format!("had no answer: {error}"),
                Err(_) => format!("had no answer within {} s", LOOK_TIMEOUT.as_secs()),
            };
            if begun.elapsed() > TELL && *self.seen.borrow() != told {
                told = self.seen.borrow().clone();
                tell(self.last_look()).await;
            }
            let longest = if status.is_some() { ASK_MAX } else { LOOK_MAX };
            tokio::time::sleep((begun.elapsed() / 10).clamp(LOOK, longest)).await;
        }
    }

    /// What the last look at a server that is not ready found, and where it looked.
    pub fn last_look(&self) -> String {
        format!("GET http://127.0.0.1:{}{HEALTH} {}", self.port, self.seen.borrow())
    }

    /// Sends a GET over a connection of its own.
    async fn ask(&self, path: &str) -> io::Result<Response<Incoming>> {
        let mut connection = self.connect().await?;
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, self.host.clone())
            .body(Full::default())
            .map_err(io::Error::other)?;
        connection.sender.send_request(request).await.map_err(io::Error::other)
    }

    /// What the server answers to a GET, if that is a success of at most `most` bytes.
    pub async fn get(&self, path: &str, most: usize) -> io::Result<Bytes> {
        let answered = tokio::time::timeout(LOOK_TIMEOUT, async {
            let response = self.ask(path).await?;
            if !response.status().is_success() {
                return Err(io::Error::other(format!("the answer is {}", response.status())));
            }
            let read = Limited::new(response.into_body(), most).collect().await;
            Ok(read.map_err(io::Error::other)?.to_bytes())
        });
        answered.await.map_err(|_| io::Error::other("no answer within 5 seconds"))?
    }

    async fn connect(&self) -> io::Result<Connection> {
        let stream = ServerStream::connect(Ipv4Addr::LOCALHOST.into(), self.port).await?;
        let heard = stream.heard();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // The connection's end shows where it is used.
        actix::spawn(async move { drop(connection.await) });
        Ok(Connection { sender, heard })
    }

    /// Sends a group and reads what becomes of each input.
    pub async fn run(&self, assignments: &[Assignment], batch: bool) -> Result<Results, String> {
        let leases: Vec<LeaseId> = assignments.iter().map(|a| a.lease).collect();
        let limit = Duration::from_millis(self.timeout_ms);
        let exchange = tokio::time::timeout(limit, self.exchange(assignments, batch));
        let answer = match exchange.await {
            Err(_) => return Ok(all_failed(&leases, &timed_out(self.timeout_ms))),
            Ok(Err(Broken::Connection(error))) => return Err(error),
            Ok(Err(Broken::Failed(failure))) => return Ok(all_failed(&leases, &failure)),
            Ok(Ok(answer)) => answer,
        };
        let outputs = if batch { split_batch(&answer, assignments.len()) } else { single(&answer).map(|o| vec![o]) };
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(failure) => return Ok(all_failed(&leases, &failure)),
        };
        let mut results = Vec::with_capacity(outputs.len());
        for (assignment, output) in assignments.iter().zip(outputs) {
            let kept = keep(&self.blobs, assignment.call, assignment.index, assignment.lease, output).await;
            results.push((assignment.lease, kept));
        }
        Ok(results)
    }

    async fn exchange(&self, assignments: &[Assignment], batch: bool) -> Result<Bytes, Broken> {
        let body = self.body(assignments, batch).await.map_err(Broken::Failed)?;
        let response = self.send(assignments, batch, body).await?;
        let status = response.status();
        let most = self.output_max * assignments.len().clamp(1, 16);
        let (bytes, end) = read(response.into_body(), most).await;
        match end {
            // A server that has refused may close before all of its reasons have left it: its status counts.
            _ if !status.is_success() => Err(Broken::Failed(error_of(status, &bytes))),
            End::Whole => Ok(bytes),
            End::TooLong => Err(Broken::Failed(too_large(self.output_max))),
            End::Broken(error) => Err(Broken::Connection(format!("the answer broke off: {error}"))),
        }
    }

    async fn body(&self, assignments: &[Assignment], batch: bool) -> Result<Bytes, Failure> {
        if !batch && let [only] = assignments {
            return input(&self.blobs, only).await;
        }
        let mut body = BytesMut::new();
        body.put_u8(b'[');
        for (position, assignment) in assignments.iter().enumerate() {
            if position > 0 {
                body.put_u8(b',');
            }
            body.put_slice(&input(&self.blobs, assignment).await?);
        }
        body.put_u8(b']');
        Ok(body.freeze())
    }

    /// Sends over an idle connection, or over a new one where the server has closed that just then: what it has neither
    /// answered nor worked on is as good as not sent.
    async fn send(&self, assignments: &[Assignment], batch: bool, body: Bytes) -> Result<Response<Incoming>, Broken> {
        let again = body.clone();
        let new = |body| self.request(assignments, batch, body).map_err(|e| Broken::Connection(e.to_string()));
        let mut request = new(body)?;
        loop {
            let known = self.idle.borrow_mut().pop();
            let reused = known.is_some();
            let mut connection = match known {
                Some(connection) if connection.sender.is_closed() => continue,
                Some(connection) => connection,
                None => self.connect().await.map_err(|e| Broken::Connection(format!("cannot connect: {e}")))?,
            };
            let (heard, begun) = (connection.heard.load(Ordering::Relaxed), Instant::now());
            let mut error = match connection.sender.try_send_request(request).await {
                Ok(response) => {
                    let idle = self.idle.clone();
                    actix::spawn(async move {
                        if connection.sender.ready().await.is_ok() {
                            idle.borrow_mut().push(connection);
                        }
                    });
                    return Ok(response);
                }
                Err(error) => error,
            };
            let unsent = error.take_message();
            let unanswered = connection.heard.load(Ordering::Relaxed) == heard && begun.elapsed() < STALE;
            request = match unsent {
                Some(unsent) if reused => unsent,
                None if reused && unanswered => {
                    // The others are as old: once more, and over a connection of which no doubt is possible.
                    self.idle.borrow_mut().clear();
                    new(again.clone())?
                }
                _ => return Err(Broken::Connection(error.into_error().to_string())),
            };
        }
    }

    fn request(
        &self,
        assignments: &[Assignment],
        batch: bool,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let deadline = chrono::Utc::now() + chrono::Duration::milliseconds(self.timeout_ms as i64);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri("/")
            .header(header::HOST, self.host.clone())
            .header(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"))
            .header("capstan-deadline", deadline.to_rfc3339_opts(chrono::SecondsFormat::Millis, true));
        if batch {
            request = request.header("capstan-batch-size", assignments.len());
        } else if let [only] = assignments {
            request = request
                .header("capstan-call-id", only.call.to_string())
                .header("capstan-input-index", only.index)
                .header("capstan-attempt", only.attempt);
        }
        if let Some(first) = assignments.first() {
            let context = trace::traceparent(&first.traceparent, first.call, first.index, first.attempt);
            request = request.header("traceparent", context);
            if let Some(state) = trace::state_of(&first.traceparent) {
                request = request.header("tracestate", state);
            }
        }
        request.body(Full::new(body))
    }
}

/// How an answer's body ended.
enum End {
    Whole,
    TooLong,
    Broken(hyper::Error),
}

/// Reads a body of at most so many bytes; what came of it, and how it ended.
async fn read(mut body: Incoming, most: usize) -> (Bytes, End) {
    let mut all = BytesMut::new();
    let mut first = Bytes::new();
    loop {
        let piece = match body.frame().await {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return (joined(first, all), End::Broken(error)),
            None => return (joined(first, all), End::Whole),
        };
        if first.len() + all.len() + piece.len() > most {
            return (joined(first, all), End::TooLong);
        }
        // Most answers are one piece, which need not be copied.
        if first.is_empty() && all.is_empty() {
            first = piece;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&piece);
        }
    }
}

fn joined(first: Bytes, rest: BytesMut) -> Bytes {
    if rest.is_empty() { first } else { rest.freeze() }
}

fn bad_output(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::BadOutput, "BadOutput", message)
}

fn single(answer: &Bytes) -> Result<Bytes, Failure> {
    if answer.is_empty() {
        return Ok(Bytes::from_static(b"null"));
    }
    let value: &RawValue = serde_json::from_slice(answer)
        .map_err(|error| bad_output(format!("the function's answer is not JSON: {error}")))?;
    Ok(one_line(answer.slice_ref(value.get().as_bytes())))
}

/// SPEC J04, J05: a list of the batch's length, or an error for every input of it.
fn split_batch(answer: &Bytes, count: usize) -> Result<Vec<Bytes>, Failure> {
    let values: Vec<&RawValue> = serde_json::from_slice(answer).map_err(|error| {
        bad_output(format!("a batch of {count} inputs needs a JSON list of {count} outputs: {error}"))
    })?;
    if values.len() != count {
        return Err(bad_output(format!(
            "a batch of {count} inputs needs {count} outputs, the function answered {}",
            values.len()
        )));
    }
    Ok(values.into_iter().map(|v| one_line(answer.slice_ref(v.get().as_bytes()))).collect())
}

/// JSON whose texts have no halves of characters: a lone surrogate is well formed JSON, and no text in Rust.
fn whole_characters(json: &[u8]) -> String {
    let text = String::from_utf8_lossy(json);
    let unit = |at: usize| {
        let hex = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(hex, 16).ok()
    };
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(found) = text[at..].find('\\').map(|found| at + found) {
        out.push_str(&text[at..found]);
        let (escape, len) = match (unit(found), unit(found + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (text.get(found..found + 12), 12),
            (Some(0xd800..=0xdfff), _) => (Some("\\ufffd"), 6),
            _ => {
                let len = 1 + text[found + 1..].chars().next().map_or(0, char::len_utf8);
                (text.get(found..found + len), len)
            }
        };
        out.push_str(escape.unwrap_or_default());
        at = found + len;
    }
    out.push_str(&text[at..]);
    out
}

/// What a server says of its failure: its own `type`, `message` and `traceback`, or its body as text.
fn error_of(status: StatusCode, body: &[u8]) -> Failure {
    #[derive(serde::Deserialize)]
    struct Told {
        #[serde(rename = "type")]
        error_type: Option<String>,
        message: Option<String>,
        traceback: Option<String>,
    }
    let told = serde_json::from_str::<Told>(&whole_characters(body))
        .ok()
        .filter(|t| t.error_type.is_some() || t.message.is_some());
    let text = String::from_utf8_lossy(body);
    let (error_type, message, traceback) = match told {
        Some(told) => (told.error_type, told.message.unwrap_or_default(), told.traceback.unwrap_or_default()),
        None if text.trim().is_empty() => (None, format!("the function answered {status}"), String::new()),
        None => (None, text.into_owned(), String::new()),
    };
    let error_type = error_type.unwrap_or_else(|| format!("HTTP {}", status.as_u16()));
    Failure { kind: FailureKind::Function, error_type, message, traceback }.bounded(FAILURE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_needs_a_list_of_its_length() {
        // SPEC J04 J05 J07 J08
        let split = |text: &'static str, n| split_batch(&Bytes::from_static(text.as_bytes()), n);
        assert_eq!(split("[[1.0],[2.5]]", 2).unwrap(), [&b"[1.0]"[..], b"[2.5]"]);
        for bad in ["[1]", "[1,2,3]", "{\"a\":1}", "2", "", "[1,"] {
            assert_eq!(split(bad, 2).unwrap_err().kind, FailureKind::BadOutput, "{bad}");
        }
    }

    #[test]
    fn an_error_keeps_the_functions_own_words() {
        let own = error_of(StatusCode::BAD_REQUEST, br#"{"type":"ValueError","message":"no","traceback":"line 1"}"#);
        assert_eq!(
            (own.error_type.as_str(), own.message.as_str(), own.traceback.as_str()),
            ("ValueError", "no", "line 1")
        );
        let half =
            error_of(StatusCode::BAD_REQUEST, br#"{"type":"E\ud83d","message":"\ud83d\ude00 \\ud83d \"\udead"}"#);
        assert_eq!((half.error_type.as_str(), half.message.as_str()), ("E\u{fffd}", "😀 \\ud83d \"\u{fffd}"));
        let plain = error_of(StatusCode::INTERNAL_SERVER_ERROR, b"boom");
        assert_eq!((plain.error_type.as_str(), plain.message.as_str()), ("HTTP 500", "boom"));
    }
}
