//! Calls over REST: invoke, spawn, spawn_map, and what became of them.

use super::{
    ask::{ask, asker, shown},
    body::{Body, Limits, Lines},
    functions::{instance_of, limit_of},
    gate::Visitor,
    lines,
    problem::{Answer, Problem, query},
};
use crate::{
    api::{Api, keys::Claim},
    route::{Asker, Route},
};
use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::header::{HeaderName, HeaderValue},
    web,
};
use bytes::{Bytes, BytesMut};
use capstan_common::{
    call::CallState,
    id::{CallId, FunctionKey},
    input::{FailureKind, Outcome},
    refusal::{Code, Refusal},
    stats::Waiting,
    trace,
};
use capstan_verb::{
    call::{self, EndedView, KEY_CHARS, Terms, error_json},
    cursor::Cursor,
    function,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The media type of lines.
pub const NDJSON: &str = "application/x-ndjson";
/// The longest wait for results.
const WAIT_MAX_S: f64 = 60.0;
/// Results in a page, at most.
const RESULTS_PAGE: usize = 10_000;

type Path = web::Path<(String, String)>;

/// Trace context and idempotency key of a request.
pub fn terms(request: &HttpRequest) -> Result<Terms, Problem> {
    let text = |name: &str| request.headers().get(name).map(|v| v.to_str().map(str::to_owned));
    let key = text("Idempotency-Key").transpose().ok().flatten();
    if key.as_ref().is_some_and(|k| k.is_empty() || k.chars().count() > KEY_CHARS)
        || (key.is_none() && request.headers().contains_key("Idempotency-Key"))
    {
        let detail = format!("must have 1 to {KEY_CHARS} visible characters");
        return Err(Refusal::field("Idempotency-Key", detail).into());
    }
    // A trace context that is not well formed is left out, as its specification asks.
    let states = request.headers().get_all("tracestate").filter_map(|value| value.to_str().ok());
    let state = states.collect::<Vec<_>>().join(",");
    let traceparent = text("traceparent").and_then(Result::ok);
    let traceparent = traceparent.and_then(|parent| trace::context(&parent, Some(&state)));
    Ok(Terms { traceparent, key })
}

/// Whether a refusal gives up what waited, so that it tells why that did.
pub fn gives_up(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::FunctionTimeout)
}

/// Why a function's inputs wait, for a refusal that gives up.
async fn waiting(route: &Route, who: &Asker, key: FunctionKey, code: Code) -> Option<Waiting> {
    if !gives_up(code) {
        return None;
    }
    route.ask(who, function::Explain { key }).await.ok()?.waiting
}

/// A refusal with the function's own error, if there is one, and why its inputs wait, if that is known.
pub fn told(refusal: Refusal, mut error: Value, waiting: Option<Waiting>) -> Problem {
    if let Some(waiting) = waiting {
        error["waiting"] = json!(waiting);
    }
    if error.is_null() { refusal.into() } else { Problem::with(refusal, "error", error) }
}

/// Why a call of one input has no output that can be shown, and the function's own error.
fn no_output(call: CallId, outcome: &Outcome) -> (Refusal, Value) {
    match outcome {
        Outcome::Failed(failure) => {
            let code = match failure.kind {
                FailureKind::Timeout => Code::FunctionTimeout,
                _ => Code::FunctionFailed,
            };
            let detail = format!("{}: {}", failure.error_type, failure.message);
            (Refusal::new(code, detail), error_json(failure))
        }
        Outcome::Succeeded(payload) => {
            let detail = format!(
                "the output is {}, which is read by the client that speaks it and not over REST",
                payload.format.name()
            );
            (Refusal::new(Code::Unsupported, detail), Value::Null)
        }
        Outcome::Cancelled => (Refusal::new(Code::Cancelled, format!("call {call} was cancelled")), Value::Null),
    }
}

pub async fn invoke(
    route: web::Data<Route>,
    limits: web::Data<Limits>,
    request: HttpRequest,
    path: Path,
    payload: web::Payload,
) -> Answer {
    let (key, terms) = (instance_of(&path)?, terms(&request)?);
    let input = Body::of(&request, payload)?.json(limits.bytes).await?;
    let who = asker(&request);
    let asked = call::Invoke { key: key.clone(), terms, input };
    let EndedView { call_id, outcome } = match route.ask(&who, asked).await {
        Ok(ended) => ended,
        Err(refusal) => {
            let waiting = waiting(&route, &who, key, refusal.code).await;
            return Err(told(refusal, Value::Null, waiting));
        }
    };
    let name = HeaderName::from_static("capstan-call-id");
    let call = HeaderValue::from_str(&call_id.to_string());
    let mut response = match lines::shown(&outcome) {
        Some(output) => HttpResponse::Ok().content_type("application/json").body(route.bytes_of(output).await?),
        None => {
            let (refusal, error) = no_output(call_id, &outcome);
            let waiting = waiting(&route, &who, key, refusal.code).await;
            told(refusal, error, waiting).error_response()
        }
    };
    if let Ok(call) = call {
        response.headers_mut().insert(name, call);
    }
    Ok(response)
}

pub async fn spawn(
    route: web::Data<Route>,
    limits: web::Data<Limits>,
    request: HttpRequest,
    path: Path,
    payload: web::Payload,
) -> Answer {
    let (key, terms) = (instance_of(&path)?, terms(&request)?);
    let input = Body::of(&request, payload)?.json(limits.bytes).await?;
    let spawned = ask(&route, &request, call::Spawn { key, terms, input }).await?;
    Ok(HttpResponse::Accepted().json(spawned))
}

pub async fn spawn_map(api: web::Data<Api>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let terms = terms(&request)?;
    let (key, claim) = api.taking(instance_of(&path)?, (&Visitor::of(&request).token, "spawn_map", &terms)).await?;
    let mut upload = api.upload(&key, terms).await?;
    let mut body = Body::of(&request, payload)?;
    let mut lines = Lines::new(api.config().payload_max_bytes);
    let mut inputs = Vec::new();
    while let Some(chunk) = body.next().await? {
        lines.take(chunk, &mut inputs)?;
        for input in inputs.drain(..) {
            upload.push(input).await?;
        }
        body.holds(lines.held() + upload.held())?;
    }
    lines.end(&mut inputs)?;
    for input in inputs {
        upload.push(input).await?;
    }
    let (call, count) = upload.finish().await.inspect_err(|_| Claim::undo(&claim))?;
    Ok(HttpResponse::Accepted().json(json!({"call_id": call, "inputs": count})))
}

/// The call that a path names; a text that is no id names no call.
pub fn call_of(text: &str) -> Result<CallId, Problem> {
    text.parse().map_err(|error: capstan_common::id::BadId| Problem::new(Code::NotFound, error.to_string()))
}

pub async fn get(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    shown(&route, &request, call::Get { call: call_of(&path)? }).await
}

pub async fn cancel(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    shown(&route, &request, call::Cancel { call: call_of(&path)? }).await
}

pub async fn explain(route: web::Data<Route>, request: HttpRequest, path: web::Path<(String, String)>) -> Answer {
    let no_index = |_| Problem::new(Code::NotFound, "an input's index is a whole number from 0");
    let index = path.1.parse().map_err(no_index)?;
    shown(&route, &request, call::ExplainInput { call: call_of(&path.0)?, index }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputsQuery {
    state: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

pub async fn inputs(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let InputsQuery { state, after, limit } = query(&request)?;
    let limit = limit_of(limit, 100, 1000)?;
    let state = state_of(state)?;
    shown(&route, &request, call::Inputs { call: call_of(&path)?, state, after, limit }).await
}

pub async fn summary(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    shown(&route, &request, call::Summarize { call: call_of(&path)? }).await
}

/// A state from a query.
fn state_of<T: DeserializeOwned>(text: Option<String>) -> Result<Option<T>, Refusal> {
    let wrong = |_| Refusal::field("state", "must be pending, running, succeeded, failed or cancelled");
    text.map(|text| serde_json::from_value(json!(text))).transpose().map_err(wrong)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultsQuery {
    after: Option<String>,
    limit: Option<usize>,
    ordered: Option<bool>,
    wait_s: Option<f64>,
}

pub async fn results(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let call = call_of(&path)?;
    let asked: ResultsQuery = query(&request)?;
    let limit = limit_of(asked.limit, 1000, RESULTS_PAGE)?;
    let after = asked.after.as_deref().map(str::parse::<Cursor>).transpose()?;
    let wait = asked.wait_s.unwrap_or(0.0);
    if wait.is_nan() || wait < 0.0 {
        return Err(Refusal::field("wait_s", format!("must be a number of seconds from 0, is {wait}")).into());
    }
    // Past the longest wait the client asks again, from the same cursor.
    let wait_ms = (wait.min(WAIT_MAX_S) * 1000.0) as u64;
    let ordered = asked.ordered.unwrap_or(true);
    let page = ask(&route, &request, call::Results { call, after, limit, ordered, wait_ms }).await?;
    let stream = async_stream::stream! {
        let mut out = BytesMut::new();
        for line in page.lines {
            let output = match lines::shown(&line.outcome) {
                None => Ok(Bytes::new()),
                Some(output) => route.bytes_of(output).await,
            };
            match output {
                Ok(output) => lines::write(&line, &output, true, &mut out),
                Err(refusal) => {
                    // The answer has begun: breaking it off is the only way to say so.
                    yield Err(Problem::from(refusal));
                    return;
                }
            }
            if out.len() > 64 << 10 {
                yield Ok(out.split().freeze());
            }
        }
        if !out.is_empty() {
            yield Ok::<_, Problem>(out.freeze());
        }
    };
    Ok(HttpResponse::Ok().content_type(NDJSON).streaming(Box::pin(stream)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallsQuery {
    namespace: Option<String>,
    function: Option<String>,
    state: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

pub async fn list(route: web::Data<Route>, request: HttpRequest) -> Answer {
    let CallsQuery { namespace, function, state, after, limit } = query(&request)?;
    let limit = limit_of(limit, 100, 1000)?;
    let state: Option<CallState> = state_of(state)?;
    let bad_after = |e: capstan_common::id::BadId| Refusal::field("after", e.to_string());
    let after = after.map(|text| text.parse()).transpose().map_err(bad_after)?;
    shown(&route, &request, call::List { namespace, function, state, after, limit }).await
}
