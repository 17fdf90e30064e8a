//! Calls over REST: invoke, spawn, spawn_map, and what became of them.

use super::{
    ask::shown,
    body::{Body, Lines},
    functions::{limit_of, used},
    guard::subject,
    keys::Claim,
    problem::{Answer, Problem, query},
};
use crate::{
    api::{Api, results::Cursor, submit::Terms},
    route::Route,
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::BytesMut;
use capstan_common::{
    call::CallState,
    id::{CallId, FunctionKey},
    refusal::{Code, Refusal},
    trace,
};
use capstan_verb::call;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// The media type of lines.
pub const NDJSON: &str = "application/x-ndjson";
/// The longest idempotency key.
const KEY_CHARS: usize = 255;
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

/// A refusal with an error, and for one that gives up with why the function's inputs wait.
pub async fn with_waiting(api: &Api, key: &FunctionKey, refusal: Refusal, mut error: serde_json::Value) -> Problem {
    if matches!(refusal.code, Code::Unavailable | Code::FunctionTimeout)
        && let Ok(Some(waiting)) = api.waiting(key).await
    {
        error["waiting"] = json!(waiting);
    }
    if error.is_null() { refusal.into() } else { Problem::with(refusal, "error", error) }
}

pub async fn invoke(api: web::Data<Api>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let key = used(&api, &path).await?;
    let terms = terms(&request)?;
    let input = Body::of(&request, payload)?.json(api.config().payload_max_bytes).await?;
    let claim = Claim::of(&request, &key, &terms)?;
    let invoked = match api.invoke(&key, input, &terms).await {
        Ok(invoked) => invoked,
        Err(refusal) => {
            Claim::undo(&claim);
            return Err(with_waiting(&api, &key, refusal, serde_json::Value::Null).await);
        }
    };
    let call = ("Capstan-Call-Id", invoked.call.to_string());
    match invoked.output {
        Ok(output) => Ok(HttpResponse::Ok().insert_header(call).content_type("application/json").body(output)),
        Err(failed) => {
            let (refusal, error) = *failed;
            let problem = with_waiting(&api, &key, refusal, error).await;
            let mut response = actix_web::ResponseError::error_response(&problem);
            let name = actix_web::http::header::HeaderName::from_static("capstan-call-id");
            if let Ok(value) = call.1.parse() {
                response.headers_mut().insert(name, value);
            }
            Ok(response)
        }
    }
}

pub async fn spawn(api: web::Data<Api>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let key = used(&api, &path).await?;
    let terms = terms(&request)?;
    let input = Body::of(&request, payload)?.json(api.config().payload_max_bytes).await?;
    let claim = Claim::of(&request, &key, &terms)?;
    let call = api.spawn(&key, input, &terms).await.inspect_err(|_| Claim::undo(&claim))?;
    Ok(HttpResponse::Accepted().json(json!({"call_id": call})))
}

pub async fn spawn_map(api: web::Data<Api>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let key = used(&api, &path).await?;
    let terms = terms(&request)?;
    let claim = Claim::of(&request, &key, &terms)?;
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
pub struct ResultsQuery {
    after: Option<String>,
    limit: Option<usize>,
    ordered: Option<bool>,
    wait_s: Option<f64>,
}

pub async fn results(api: web::Data<Api>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let call = call_of(&path)?;
    let asked: ResultsQuery = query(&request)?;
    let limit = limit_of(asked.limit, 1000, RESULTS_PAGE)?;
    let after = asked.after.as_deref().map(str::parse::<Cursor>).transpose()?;
    let wait = asked.wait_s.unwrap_or(0.0);
    if wait.is_nan() || wait < 0.0 {
        return Err(Refusal::field("wait_s", format!("must be a number of seconds from 0, is {wait}")).into());
    }
    // Past the longest wait the client asks again, from the same cursor.
    let wait = wait.min(WAIT_MAX_S);
    let ordered = asked.ordered.unwrap_or(true);
    let lines = api.results(&subject(&request), call, after, limit, ordered, Duration::from_secs_f64(wait)).await?;
    let stream = async_stream::stream! {
        let mut out = BytesMut::new();
        for line in lines {
            match api.output_of(&line).await {
                Ok(output) => line.write(&output, true, &mut out),
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
    let state: Option<CallState> = state
        .map(|text| serde_json::from_value(json!(text)))
        .transpose()
        .map_err(|_| Refusal::field("state", "must be pending, running, succeeded, failed or cancelled"))?;
    let bad_after = |e: capstan_common::id::BadId| Refusal::field("after", e.to_string());
    let after = after.map(|text| text.parse()).transpose().map_err(bad_after)?;
    shown(&route, &request, call::List { namespace, function, state, after, limit }).await
}
