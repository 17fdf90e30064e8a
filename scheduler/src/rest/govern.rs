//! Namespaces, scaling models to zero, and schedules over REST.

use super::{
    ask::{ask, asker, shown, telling},
    body::Body,
    functions::{instance_of, key_of},
    problem::{Answer, Problem, parse, query},
};
use crate::{
    route::{Gathered, Route},
    zero_config::{entries_of, yaml},
};
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use capstan_common::refusal::{Code, Refusal};
use capstan_verb::{
    function,
    model::{self, Sample, ScaleToZeroView, Vector},
    namespace::{self, QuotaView},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The largest configuration.
const CONFIG_BYTES: usize = 1 << 20;
/// Tells what of a configuration does not hold.
const WARNINGS: &str = "Capstan-Warnings";

type Path = web::Path<(String, String)>;

fn configuration(config: ScaleToZeroView) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    if !config.warnings.is_empty() {
        let told = json!(config.warnings).to_string();
        // Header values are ASCII: JSON escapes what is not.
        let ascii: String = told.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).collect();
        response.insert_header((WARNINGS, ascii));
    }
    response.json(config.data)
}

pub async fn scale_to_zero(route: web::Data<Route>, request: HttpRequest) -> Answer {
    Ok(configuration(ask(&route, &request, model::ScaleToZero {}).await?))
}

/// JSON or YAML: every JSON document is YAML too, but its errors are told better as JSON.
pub async fn set_scale_to_zero(route: web::Data<Route>, request: HttpRequest, payload: web::Payload) -> Answer {
    let bytes = Body::of(&request, payload)?.whole(CONFIG_BYTES).await?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let text = std::str::from_utf8(&bytes).map_err(|_| Problem::new(Code::Malformed, "the body is not UTF-8"))?;
    let document = match serde_json::from_str::<Value>(text) {
        Ok(document) => document,
        Err(error) if kind.contains("json") => {
            return Err(Problem::new(Code::Malformed, format!("the body is not JSON: {error}")));
        }
        Err(_) => yaml(text).map_err(|e| Problem::new(Code::Malformed, format!("the body is not YAML: {e}")))?,
    };
    let set = model::SetScaleToZero { data: entries_of(document)? };
    Ok(configuration(ask(&route, &request, set).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EffectiveQuery {
    model_id: Option<String>,
    namespace: Option<String>,
}

pub async fn effective(route: web::Data<Route>, request: HttpRequest) -> Answer {
    let EffectiveQuery { model_id, namespace } = query(&request)?;
    let model_id = model_id.ok_or_else(|| Refusal::field("model_id", "must name a model"))?;
    let namespace = namespace.unwrap_or_else(|| "default".into());
    shown(&route, &request, model::Effective { model_id, namespace }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromqlQuery {
    query: Option<String>,
    time: Option<String>,
    /// Prometheus' own: the answer is there at once.
    #[serde(default, rename = "timeout")]
    _timeout: Option<String>,
}

/// Errors are told as Prometheus tells them, for its clients.
pub async fn promql(route: web::Data<Route>, request: HttpRequest) -> Answer {
    let asked: PromqlQuery = query(&request)?;
    let text = asked.query.ok_or_else(|| Refusal::field("query", "must be a PromQL expression"))?;
    let who = asker(&request);
    let found = route.gather(&who, model::Query { query: text, time: asked.time }).await;
    Ok(match found {
        Ok(Gathered { answer: Vector { samples }, silent }) => {
            let sample = |s: Sample| json!({"metric": s.metric, "value": [s.at, s.value.to_string()]});
            let result: Vec<Value> = samples.into_iter().map(sample).collect();
            telling(&who, silent).json(json!({"status": "success", "data": {"resultType": "vector", "result": result}}))
        }
        Err(refusal) => {
            let (kind, mut response) = match refusal.code {
                Code::Unsupported => ("execution", HttpResponse::UnprocessableEntity()),
                Code::Unavailable => ("unavailable", HttpResponse::ServiceUnavailable()),
                _ => ("bad_data", HttpResponse::BadRequest()),
            };
            response.json(json!({"status": "error", "errorType": kind, "error": refusal.detail}))
        }
    })
}

pub async fn scaling(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::Scaling { key: instance_of(&path)? }).await
}

pub async fn namespaces(route: web::Data<Route>, request: HttpRequest) -> Answer {
    shown(&route, &request, namespace::List {}).await
}

pub async fn namespace(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    shown(&route, &request, namespace::Get { namespace: path.into_inner() }).await
}

/// A policy as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenPolicy {
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    quota: WrittenQuota,
}

#[derive(Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields)]
struct WrittenQuota {
    containers: Option<u32>,
    cpu: Option<f64>,
    memory_mib: Option<u64>,
    gpus: Option<u32>,
}

pub async fn govern(
    route: web::Data<Route>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    let WrittenPolicy { weight, quota } = parse(&Body::of(&request, payload)?.whole(CONFIG_BYTES).await?)?;
    let WrittenQuota { containers, cpu, memory_mib, gpus } = quota;
    let quota = QuotaView { containers, cpu, memory_mib, gpus };
    let set = namespace::Set { namespace: path.into_inner(), weight: weight.unwrap_or(1), quota };
    shown(&route, &request, set).await
}

pub async fn schedule(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::Schedule { key: key_of(&path)? }).await
}

pub async fn pause(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::PauseSchedule { key: key_of(&path)?, paused: true }).await
}

pub async fn resume(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::PauseSchedule { key: key_of(&path)?, paused: false }).await
}

pub async fn run(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    let made = ask(&route, &request, function::RunSchedule { key: key_of(&path)? }).await?;
    Ok(HttpResponse::Accepted().json(made))
}
