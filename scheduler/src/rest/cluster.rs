//! Workers, containers, logs, events, metrics and health over REST.

use super::{
    ask::{ask, shown},
    problem::{Answer, Problem, query},
};
use crate::{api::Api, route::Route};
use actix_web::{HttpRequest, HttpResponse, web};
use capstan_common::{id::ContainerId, refusal::Code, worker::WorkerState};
use capstan_verb::{cluster, container};
use serde::Deserialize;
use serde_json::json;

pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

pub async fn readyz(api: web::Data<Api>) -> Answer {
    api.ready()?;
    Ok(HttpResponse::Ok().json(json!({"status": "ready"})))
}

pub async fn version(route: web::Data<Route>, request: HttpRequest) -> Answer {
    shown(&route, &request, cluster::Version {}).await
}

pub async fn metrics(api: web::Data<Api>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(api.metrics().await)
}

pub async fn schedulers(route: web::Data<Route>, request: HttpRequest) -> Answer {
    shown(&route, &request, cluster::Schedulers {}).await
}

pub async fn workers(route: web::Data<Route>, request: HttpRequest) -> Answer {
    shown(&route, &request, cluster::Workers {}).await
}

pub async fn worker(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    shown(&route, &request, cluster::Worker { name: path.into_inner() }).await
}

async fn turn(route: &Route, request: &HttpRequest, name: web::Path<String>, state: WorkerState) -> Answer {
    let name = name.into_inner();
    ask(route, request, cluster::TurnWorker { name: name.clone(), state }).await?;
    shown(route, request, cluster::Worker { name }).await
}

pub async fn drain(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    turn(&route, &request, path, WorkerState::Draining).await
}

pub async fn resume(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    turn(&route, &request, path, WorkerState::Ready).await
}

pub async fn revoke(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    shown(&route, &request, cluster::RevokeWorker { name: path.into_inner() }).await
}

pub async fn invite(route: web::Data<Route>, request: HttpRequest) -> Answer {
    let invitation = ask(&route, &request, cluster::Invite {}).await?;
    Ok(HttpResponse::Created().json(invitation))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainersQuery {
    namespace: Option<String>,
    function: Option<String>,
    worker: Option<String>,
}

pub async fn containers(route: web::Data<Route>, request: HttpRequest) -> Answer {
    let ContainersQuery { namespace, function, worker } = query(&request)?;
    shown(&route, &request, container::List { namespace, function, worker }).await
}

/// The container that a path names; a text that is no id names none.
pub fn container_of(text: &str) -> Result<ContainerId, Problem> {
    text.parse().map_err(|e: capstan_common::id::BadId| Problem::new(Code::NotFound, e.to_string()))
}

pub async fn stop(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let told = ask(&route, &request, container::Stop { container: container_of(&path)? }).await?;
    Ok(HttpResponse::Accepted().json(told))
}
