//! Namespaces, scaling models to zero, and schedules over REST.

use super::{
    ask::{asker, shown, telling},
    body::Body,
    functions::{instance_of, key_of},
    problem::{Answer, Problem, parse, query},
};
use crate::{
    api::{
        Api,
        govern::{ZeroConfig, entries_of, yaml},
    },
    route::{Gathered, Route},
};
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use capstan_common::refusal::{Code, Refusal};
use capstan_scheduler_core::autoscaler::{Policy, Quota};
use capstan_verb::{
    function,
    model::{self, Sample, Vector},
    namespace,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The largest configuration.
const CONFIG_BYTES: usize = 1 << 20;
/// Tells what of a configuration does not hold.
const WARNINGS: &str = "Capstan-Warnings";

type Path = web::Path<(String, String)>;

fn configuration(config: &ZeroConfig) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    if !config.warnings.is_empty() {
        let told: Vec<String> = config.warnings.iter().map(|w| format!("{}: {}", w.entry, w.detail)).collect();
        // Header values are ASCII: JSON escapes what is not.
        let ascii: String = json!(told).to_string().chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).collect();
        response.insert_header((WARNINGS, ascii));
    }
    response.json(&config.data)
}

pub async fn scale_to_zero(api: web::Data<Api>) -> HttpResponse {
    configuration(&api.scale_to_zero())
}

/// JSON or YAML: every JSON document is YAML too, but its errors are told better as JSON.
pub async fn set_scale_to_zero(api: web::Data<Api>, request: HttpRequest, payload: web::Payload) -> Answer {
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
    Ok(configuration(&*api.set_scale_to_zero(entries_of(document)?).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EffectiveQuery {
    model_id: Option<String>,
    namespace: Option<String>,
}

pub async fn effective(api: web::Data<Api>, request: HttpRequest) -> Answer {
    let asked: EffectiveQuery = query(&request)?;
    let model = asked.model_id.ok_or_else(|| Refusal::field("model_id", "must name a model"))?;
    let namespace = asked.namespace.as_deref().unwrap_or("default");
    Ok(HttpResponse::Ok().json(api.scale_to_zero().effective(&model, namespace)))
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
    let found = route.gather(&asker(&request), model::Query { query: text, time: asked.time }).await;
    Ok(match found {
        Ok(Gathered { answer: Vector { samples }, silent }) => {
            let sample = |s: Sample| json!({"metric": s.metric, "value": [s.at, s.value.to_string()]});
            let result: Vec<Value> = samples.into_iter().map(sample).collect();
            telling(silent).json(json!({"status": "success", "data": {"resultType": "vector", "result": result}}))
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

/// A policy as it is written: cores as a number.
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
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    let written: WrittenPolicy = parse(&Body::of(&request, payload)?.whole(CONFIG_BYTES).await?)?;
    let quota = written.quota;
    if let Some(cpu) = quota.cpu.filter(|cpu| !(0.0..=1e6).contains(cpu)) {
        return Err(
            Refusal::field("quota/cpu", format!("must be a number of cores from 0 to 1000000, is {cpu:e}")).into()
        );
    }
    let quota = Quota {
        containers: quota.containers,
        cpu_milli: quota.cpu.map(|cpu| (cpu * 1000.0).round() as u64),
        memory_mib: quota.memory_mib,
        gpus: quota.gpus,
    };
    let policy = Policy { weight: written.weight.unwrap_or(1), quota };
    Ok(HttpResponse::Ok().json(api.govern(&path, policy).await?))
}

pub async fn schedule(api: web::Data<Api>, path: Path) -> Answer {
    Ok(HttpResponse::Ok().json(api.schedule(&key_of(&path)?).await?))
}

pub async fn pause(api: web::Data<Api>, path: Path) -> Answer {
    Ok(HttpResponse::Ok().json(api.pause_schedule(&key_of(&path)?, true).await?))
}

pub async fn resume(api: web::Data<Api>, path: Path) -> Answer {
    Ok(HttpResponse::Ok().json(api.pause_schedule(&key_of(&path)?, false).await?))
}

pub async fn run(api: web::Data<Api>, path: Path) -> Answer {
    let call = api.run_schedule(&key_of(&path)?).await?;
    Ok(HttpResponse::Accepted().json(json!({"call_id": call})))
}
