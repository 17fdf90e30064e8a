//! The `http` protocol: a long-lived server gets each input, or each batch, as `POST /`.

use super::{Results, all_failed, end_of, input, keep, one_line, timed_out, too_large};
use bytes::{BufMut, Bytes, BytesMut};
use capstan_blob::Blobs;
use capstan_common::{
    id::LeaseId,
    input::{Failure, FailureKind},
    order::Assignment,
    trace,
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use std::{cell::RefCell, io, rc::Rc, time::Duration};
use tokio::net::TcpStream;

/// The first pause between two looks at a starting server; it doubles.
const LOOK_MS: u64 = 1;
/// The longest such pause.
const LOOK_MAX_MS: u64 = 20;
/// The longest answer to a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// A server on this machine, with its idle connections.
#[derive(Clone)]
pub struct Server {
    port: u16,
    host: header::HeaderValue,
    idle: Rc<RefCell<Vec<SendRequest<Full<Bytes>>>>>,
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
            blobs,
            output_max,
            timeout_ms,
        }
    }

    /// Comes back when the server takes inputs: `GET /healthz` answers below 500, or 404.
    pub async fn ready(&self) {
        let mut pause = LOOK_MS;
        loop {
            let look = tokio::time::timeout(LOOK_TIMEOUT, self.look()).await;
            if matches!(look, Ok(Ok(status)) if status.as_u16() < 500) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            pause = (pause * 2).min(LOOK_MAX_MS);
        }
    }

    async fn look(&self) -> io::Result<StatusCode> {
        Ok(self.ask("/healthz").await?.status())
    }

    /// Sends a GET over a connection of its own.
    async fn ask(&self, path: &str) -> io::Result<Response<Incoming>> {
        let mut connection = self.connect().await?;
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, self.host.clone())
            .body(Full::default())
            .map_err(io::Error::other)?;
        connection.send_request(request).await.map_err(io::Error::other)
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

    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // The connection's end shows where it is used.
        actix::spawn(async move { drop(connection.await) });
        Ok(sender)
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
        let read = Limited::new(response.into_body(), most).collect().await;
        let bytes = match read {
            Ok(collected) => collected.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(Broken::Failed(too_large(self.output_max))),
            Err(error) => {
                return Err(Broken::Connection(format!("the answer broke off: {error}")));
            }
        };
        if status.is_success() { Ok(bytes) } else { Err(Broken::Failed(error_of(status, &bytes))) }
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

    /// Sends over an idle connection, or a new one where that has gone stale before the request was written.
    async fn send(&self, assignments: &[Assignment], batch: bool, body: Bytes) -> Result<Response<Incoming>, Broken> {
        let mut request = self.request(assignments, batch, body).map_err(|e| Broken::Connection(e.to_string()))?;
        loop {
            let known = self.idle.borrow_mut().pop();
            let reused = known.is_some();
            let mut connection = match known {
                Some(connection) if connection.is_closed() => continue,
                Some(connection) => connection,
                None => self.connect().await.map_err(|e| Broken::Connection(format!("cannot connect: {e}")))?,
            };
            match connection.try_send_request(request).await {
                Ok(response) => {
                    let idle = self.idle.clone();
                    actix::spawn(async move {
                        if connection.ready().await.is_ok() {
                            idle.borrow_mut().push(connection);
                        }
                    });
                    return Ok(response);
                }
                Err(mut error) => match error.take_message().filter(|_| reused) {
                    Some(unsent) => request = unsent,
                    None => return Err(Broken::Connection(error.into_error().to_string())),
                },
            }
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
        }
        request.body(Full::new(body))
    }
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

/// What a server says of its failure: its own `type`, `message` and `traceback`, or its body as text.
fn error_of(status: StatusCode, body: &[u8]) -> Failure {
    #[derive(serde::Deserialize)]
    struct Told {
        #[serde(rename = "type")]
        error_type: Option<String>,
        message: Option<String>,
        traceback: Option<String>,
    }
    let told = serde_json::from_slice::<Told>(body).ok().filter(|t| t.error_type.is_some() || t.message.is_some());
    let text = end_of(&String::from_utf8_lossy(body));
    let (error_type, message, traceback) = match told {
        Some(told) => (told.error_type, told.message.unwrap_or_default(), told.traceback.unwrap_or_default()),
        None if text.trim().is_empty() => (None, format!("the function answered {status}"), String::new()),
        None => (None, text, String::new()),
    };
    Failure {
        kind: FailureKind::Function,
        error_type: error_type.unwrap_or_else(|| format!("HTTP {}", status.as_u16())),
        message,
        traceback,
    }
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
        let plain = error_of(StatusCode::INTERNAL_SERVER_ERROR, b"boom");
        assert_eq!((plain.error_type.as_str(), plain.message.as_str()), ("HTTP 500", "boom"));
    }
}
