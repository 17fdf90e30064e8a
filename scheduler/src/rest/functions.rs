//! Functions over REST.

use super::{
    ask::{ask, asker, shown},
    body::Body,
    problem::{Answer, Problem, parse, parse_large, query},
};
use crate::route::{Asker, Route};
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
    validate,
};
use capstan_verb::function::{self, DeployedView, FunctionView, Precondition};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The largest spec or patch.
const SPEC_BYTES: usize = 1 << 20;
/// The longest wait for a deployment, and the longest part of it that one question takes.
const MOST_WAIT_S: f64 = 3600.0;
const ONE_WAIT: Duration = Duration::from_secs(20);
/// Functions in a page, at most.
const PAGE: usize = 1000;

type Path = web::Path<(String, String)>;

/// The function that a path names.
pub fn key_of(path: &(String, String)) -> Result<FunctionKey, Problem> {
    validate::function_key(&path.0, &path.1).map_err(Problem::from)
}

/// The function or instance that a path names.
pub fn instance_of(path: &(String, String)) -> Result<FunctionKey, Problem> {
    validate::instance_key(&path.0, &path.1).map_err(Problem::from)
}

/// What a request asks of the live revision before it acts.
fn before(request: &HttpRequest) -> Precondition {
    let absent = request.headers().get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == b"*");
    let Some(value) = request.headers().get(header::IF_MATCH) else {
        return Precondition { absent, ..Precondition::default() };
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Precondition { absent, present: true, one_of: None };
    }
    let numbers = text.split(',').filter_map(|one| one.trim().trim_matches('"').parse().ok());
    // What names no revision matches none.
    Precondition { absent, present: false, one_of: Some(numbers.collect()) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeployQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    require_capacity: bool,
    wait_s: Option<f64>,
}

/// How long a deployment is waited for.
fn wait_of(wait_s: Option<f64>) -> Result<Duration, Refusal> {
    let wait = wait_s.unwrap_or(0.0);
    if !(0.0..=MOST_WAIT_S).contains(&wait) {
        return Err(Refusal::field("wait_s", format!("must be from 0 to {MOST_WAIT_S} seconds, is {wait}")));
    }
    Ok(Duration::from_secs_f64(wait))
}

/// Waits until the revision of an answer serves. One that does not start is refused with its container's output; one that takes
/// longer is answered as it stands.
async fn taken_over(route: &Route, who: &Asker, function: &mut FunctionView, wait: Duration) -> Result<(), Refusal> {
    let until = Instant::now() + wait;
    while function.live_revision < function.revision && Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now()).min(ONE_WAIT);
        let key = FunctionKey::new(&function.namespace, &function.name);
        let (revision, wait_ms) = (function.revision, left.as_millis() as u64 + 1);
        let rollout = route.ask(who, function::AwaitDeployed { key, revision, wait_ms }).await?;
        function.live_revision = rollout.live_revision;
        if rollout.has_failed && rollout.revision == revision {
            let detail = format!(
                "revision {revision} does not start: {}; revision {} goes on, and the new one is tried on",
                rollout.detail.unwrap_or_default(),
                rollout.live_revision
            );
            return Err(Refusal::new(Code::DeployFailed, detail));
        }
        if rollout.revision != revision {
            let detail = format!("revision {} was deployed meanwhile", rollout.revision);
            return Err(Refusal::new(Code::Conflict, detail));
        }
    }
    Ok(())
}

pub async fn deploy(route: web::Data<Route>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let (key, before) = (key_of(&path)?, before(&request));
    let bytes = Body::of(&request, payload)?.whole(SPEC_BYTES).await?;
    let spec = parse_large(bytes.clone()).await?;
    let asked: DeployQuery = query(&request)?;
    let wait = wait_of(asked.wait_s)?;
    if asked.dry_run {
        let mut checked = ask(&route, &request, function::Check { key, spec, before }).await?;
        checked.warnings = [warnings(&bytes), checked.warnings].concat();
        return Ok(HttpResponse::Ok().json(checked));
    }
    let DeployQuery { force: at_once, require_capacity, .. } = asked;
    let deploy = function::Deploy { key, spec, before, at_once, require_capacity };
    let DeployedView { mut function, new } = ask(&route, &request, deploy).await?;
    taken_over(&route, &asker(&request), &mut function, wait).await?;
    function.warnings = [warnings(&bytes), function.warnings].concat();
    let mut response = if new { HttpResponse::Created() } else { HttpResponse::Ok() };
    response.insert_header((header::ETAG, format!("\"{}\"", function.revision)));
    Ok(response.json(function))
}

/// What of a body is taken under an older name.
fn warnings(bytes: &[u8]) -> Vec<String> {
    let Ok(written) = serde_json::from_slice::<serde_json::Value>(bytes) else { return Vec::new() };
    let mut warnings = validate::older_names(&written);
    if written["snapshot"] == true {
        warnings.push("snapshot: no worker can take snapshots; containers start normally".into());
    }
    warnings
}

pub async fn revisions(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::Revisions { key: key_of(&path)? }).await
}

/// Which revision; nothing is the one before.
#[derive(Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    revision: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackQuery {
    #[serde(default)]
    force: bool,
    wait_s: Option<f64>,
}

pub async fn rollback(route: web::Data<Route>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let bytes = Body::of(&request, payload)?.whole(SPEC_BYTES).await?;
    let Wanted { revision } = if bytes.is_empty() { Wanted::default() } else { parse(&bytes)? };
    let RollbackQuery { force: at_once, wait_s } = query(&request)?;
    let wait = wait_of(wait_s)?;
    let asked = function::Rollback { key: key_of(&path)?, revision, before: before(&request), at_once };
    let DeployedView { mut function, .. } = ask(&route, &request, asked).await?;
    taken_over(&route, &asker(&request), &mut function, wait).await?;
    let etag = (header::ETAG, format!("\"{}\"", function.revision));
    Ok(HttpResponse::Ok().insert_header(etag).json(function))
}

pub async fn get(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    let function = ask(&route, &request, function::Get { key: instance_of(&path)? }).await?;
    let etag = (header::ETAG, format!("\"{}\"", function.revision));
    Ok(HttpResponse::Ok().insert_header(etag).json(function))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
}

/// A page's size from a query; a larger one than a page can have is cut, and the cursor goes on.
pub fn limit_of(limit: Option<usize>, default: usize, most: usize) -> Result<usize, Problem> {
    match limit {
        Some(0) => Err(Refusal::field("limit", "must be at least 1, is 0").into()),
        limit => Ok(limit.unwrap_or(default).min(most)),
    }
}

pub async fn list(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    validate::function_key(&path, "any")?;
    let asked: ListQuery = query(&request)?;
    let limit = limit_of(asked.limit, 100, PAGE)?;
    shown(&route, &request, function::List { namespace: path.into_inner(), after: asked.after, limit }).await
}

pub async fn remove(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    ask(&route, &request, function::Remove { key: instance_of(&path)?, before: before(&request) }).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub async fn settings(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::Settings { key: instance_of(&path)? }).await
}

pub async fn patch(route: web::Data<Route>, request: HttpRequest, path: Path, payload: web::Payload) -> Answer {
    let bytes = Body::of(&request, payload)?.whole(SPEC_BYTES).await?;
    let patch = function::Patch { key: instance_of(&path)?, patch: parse(&bytes)?, before: before(&request) };
    let mut settings = ask(&route, &request, patch).await?;
    settings.warnings.extend(warnings(&bytes));
    Ok(HttpResponse::Ok().json(settings))
}

pub async fn stats(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::GetStats { key: instance_of(&path)? }).await
}

/// What was recorded of a function's inputs, for what-if: one line each, the oldest calls first; then the latest web requests and starts.
pub async fn trace(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    let (key, who) = (instance_of(&path)?, asker(&request));
    let mut page = route.ask(&who, function::Trace { key: key.clone(), after: None }).await?;
    let stream = async_stream::stream! {
        loop {
            yield Ok::<_, Problem>(bytes::Bytes::from(page.lines));
            if page.next.is_none() {
                return;
            }
            page = match route.ask(&who, function::Trace { key: key.clone(), after: page.next }).await {
                Ok(page) => page,
                Err(refusal) => {
                    yield Err(refusal.into());
                    return;
                }
            };
        }
    };
    Ok(HttpResponse::Ok().content_type(super::calls::NDJSON).streaming(Box::pin(stream)))
}

pub async fn instances(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::Instances { key: key_of(&path)? }).await
}

pub async fn explain(route: web::Data<Route>, request: HttpRequest, path: Path) -> Answer {
    shown(&route, &request, function::Explain { key: instance_of(&path)? }).await
}
