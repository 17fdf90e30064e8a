//! Functions over REST.

use super::{
    body,
    problem::{Answer, Problem, parse, query},
};
use crate::api::Api;
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
    validate,
};
use serde::Deserialize;
use serde_json::json;

/// The largest spec or patch.
const SPEC_BYTES: usize = 1 << 20;
/// Functions in a page, at most.
const PAGE: usize = 1000;

type Path = web::Path<(String, String)>;

/// The function that a path names.
pub fn key_of(path: &(String, String)) -> Result<FunctionKey, Problem> {
    validate::function_key(&path.0, &path.1).map_err(Problem::from)
}

fn if_match(request: &HttpRequest) -> Result<Option<u32>, Problem> {
    let Some(value) = request.headers().get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim_matches('"');
    let revision = text.parse().map_err(|_| {
        Problem::new(Code::Invalid, "If-Match must be a revision's number, as the ETag of the function tells it")
    })?;
    Ok(Some(revision))
}

pub async fn deploy(api: web::Data<Api>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let key = key_of(&path)?;
    let spec = parse(&body::whole(payload, SPEC_BYTES).await?)?;
    let (function, new) = api.deploy(key, spec, if_match(&request)?).await?;
    let mut response = if new { HttpResponse::Created() } else { HttpResponse::Ok() };
    response.insert_header((header::ETAG, format!("\"{}\"", function.revision)));
    Ok(response.json(function))
}

pub async fn get(api: web::Data<Api>, path: Path) -> Answer {
    let function = api.function(&key_of(&path)?).await?;
    let etag = (header::ETAG, format!("\"{}\"", function.revision));
    Ok(HttpResponse::Ok().insert_header(etag).json(function))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
}

/// A page's size from a query.
pub fn limit_of(limit: Option<usize>, default: usize, most: usize) -> Result<usize, Problem> {
    match limit {
        None => Ok(default),
        Some(n) if (1..=most).contains(&n) => Ok(n),
        Some(n) => Err(Problem::new(Code::Invalid, format!("limit: must be from 1 to {most}, is {n}"))),
    }
}

pub async fn list(api: web::Data<Api>, request: HttpRequest, path: web::Path<String>) -> Answer {
    validate::function_key(&path, "any")?;
    let asked: ListQuery = query(&request)?;
    let limit = limit_of(asked.limit, 100, PAGE)?;
    let (functions, next) = api.functions(&path, asked.after.as_deref(), limit).await;
    Ok(HttpResponse::Ok().json(json!({"functions": functions, "next": next})))
}

pub async fn remove(api: web::Data<Api>, path: Path) -> Answer {
    api.remove(&key_of(&path)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub async fn settings(api: web::Data<Api>, path: Path) -> Answer {
    Ok(HttpResponse::Ok().json(api.settings(&key_of(&path)?).await?))
}

pub async fn patch(api: web::Data<Api>, path: Path, payload: web::Payload) -> Answer {
    let key = key_of(&path)?;
    let bytes = body::whole(payload, SPEC_BYTES).await?;
    let value: serde_json::Value = parse(&bytes)?;
    if !value.is_object() {
        return Err(Refusal::fields(vec![capstan_common::refusal::FieldError {
            pointer: String::new(),
            detail: "must be an object of settings, for example {\"min_containers\": 2}".into(),
        }])
        .into());
    }
    let patch = parse(&bytes)?;
    Ok(HttpResponse::Ok().json(api.patch(&key, patch).await?))
}

pub async fn stats(api: web::Data<Api>, path: Path) -> Answer {
    Ok(HttpResponse::Ok().json(api.stats(&key_of(&path)?).await?))
}

pub async fn explain(api: web::Data<Api>, path: Path) -> Answer {
    Ok(HttpResponse::Ok().json(api.explain(&key_of(&path)?).await?))
}
