//! Workers, containers, logs, events, metrics and health over REST.

use super::{
    gather::{self, elsewhere, gather},
    guard::subject,
    problem::{Answer, Problem, query},
};
use crate::api::{Api, cluster::ContainersFilter};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use capstan_common::{id::ContainerId, refusal::Code, worker::WorkerState};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

pub async fn readyz(api: web::Data<Api>) -> Answer {
    api.ready()?;
    Ok(HttpResponse::Ok().json(json!({"status": "ready"})))
}

pub async fn metrics(api: web::Data<Api>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(api.metrics().await)
}

pub async fn schedulers(api: web::Data<Api>) -> HttpResponse {
    HttpResponse::Ok().json(api.schedulers())
}

/// Each scheduler knows the containers of its own functions on a worker.
pub async fn workers(api: web::Data<Api>, request: HttpRequest) -> HttpResponse {
    let mut workers = api.workers().await;
    for other in gather(&api, &request, "workers").await {
        match workers.iter_mut().find(|worker| worker["id"] == other["id"]) {
            Some(known) => add_containers(known, other["containers"].as_array().cloned().unwrap_or_default()),
            None => workers.push(other),
        }
    }
    HttpResponse::Ok().json(json!({"workers": workers}))
}

fn add_containers(worker: &mut Value, more: Vec<Value>) {
    if let Some(containers) = worker["containers"].as_array_mut() {
        containers.extend(more);
    }
}

/// The worker with what all schedulers have on it. An order that turns it is heard by all of them at once.
async fn whole(api: &Api, request: &HttpRequest, mut worker: Value) -> HttpResponse {
    add_containers(&mut worker, gather(api, request, "containers").await);
    HttpResponse::Ok().json(worker)
}

pub async fn worker(api: web::Data<Api>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let known = match api.worker(&path).await {
        Ok(known) => known,
        Err(refusal) => return elsewhere(&api, &request).await.ok_or_else(|| refusal.into()),
    };
    Ok(whole(&api, &request, known).await)
}

pub async fn drain(api: web::Data<Api>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let turned = api.turn_worker(&path, WorkerState::Draining).await?;
    Ok(whole(&api, &request, turned).await)
}

pub async fn resume(api: web::Data<Api>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let turned = api.turn_worker(&path, WorkerState::Ready).await?;
    Ok(whole(&api, &request, turned).await)
}

pub async fn revoke(api: web::Data<Api>, path: web::Path<String>) -> Answer {
    Ok(HttpResponse::Ok().json(api.revoke_worker(&path).await?))
}

pub async fn invite(api: web::Data<Api>) -> Answer {
    Ok(HttpResponse::Created().json(api.invite().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainersQuery {
    namespace: Option<String>,
    function: Option<String>,
    worker: Option<String>,
}

pub async fn containers(api: web::Data<Api>, request: HttpRequest) -> Answer {
    let asked: ContainersQuery = query(&request)?;
    let wanted = ContainersFilter { namespace: asked.namespace, function: asked.function, worker: asked.worker };
    let mut containers = api.containers(&wanted).await;
    containers.extend(gather(&api, &request, "containers").await);
    let subject = subject(&request);
    containers.retain(|container| container["namespace"].as_str().is_some_and(|ns| subject.sees(ns)));
    Ok(HttpResponse::Ok().json(json!({"containers": containers})))
}

fn container_of(text: &str) -> Result<ContainerId, Problem> {
    text.parse().map_err(|e: capstan_common::id::BadId| Problem::new(Code::NotFound, e.to_string()))
}

pub async fn stop(api: web::Data<Api>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let container = container_of(&path)?;
    if !api.is_live(container)
        && let Some(answer) = elsewhere(&api, &request).await
    {
        return Ok(answer);
    }
    api.stop_container(&subject(&request), container).await?;
    Ok(HttpResponse::Accepted().json(json!({"id": &*path, "state": "stopping"})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogsQuery {
    follow: Option<bool>,
}

pub async fn logs(api: web::Data<Api>, request: HttpRequest, path: web::Path<String>) -> Answer {
    let container = container_of(&path)?;
    let asked: LogsQuery = query(&request)?;
    let follow = asked.follow.unwrap_or(false);
    if let Err(refusal) = api.must_see_output(&subject(&request), container) {
        return elsewhere(&api, &request).await.ok_or_else(|| refusal.into());
    }
    let stream = async_stream::stream! {
        let mut from = 0;
        while let Some(page) = api.telemetry().logs.read(container, from) {
            from = page.next;
            for chunk in page.chunks {
                yield Ok::<_, Problem>(chunk);
            }
            let mut more = page.more;
            if !follow || page.ended {
                break;
            }
            tokio::select! {
                changed = more.changed() => if changed.is_err() { break },
                () = api.stopping().cancelled() => break,
            }
        }
    };
    Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").streaming(Box::pin(stream)))
}

pub async fn events(api: web::Data<Api>, request: HttpRequest) -> HttpResponse {
    let mut listener = api.telemetry().events.listen();
    let (theirs, stopping) = (gather::events(&api, &request).await, api.stopping().clone().cancelled_owned());
    let ours = async_stream::stream! {
        yield Ok::<_, Problem>(Bytes::from([gather::BEGINNING, b"\n\n"].concat()));
        loop {
            match listener.recv().await {
                Ok(text) => yield Ok(Bytes::from(format!("data: {text}\n\n"))),
                Err(RecvError::Lagged(missed)) => yield Ok(Bytes::from(format!(": {missed} events were missed\n\n"))),
                Err(RecvError::Closed) => break,
            }
        }
    };
    let all = stream::select(ours, theirs.map(Ok)).take_until(stopping);
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("Cache-Control", "no-cache"))
        // A proxy in between passes each event on as it comes.
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(Box::pin(all))
}
