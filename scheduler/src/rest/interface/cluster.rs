//! Containers, workers, schedulers, namespaces, tokens, and the server itself.

use super::{
    functions::{SPEC_BYTES, part_of_output},
    operation::{JSON, Operation, Scope},
    shape::Shape,
    shapes::{Health, Policy},
    tagged,
};
use capstan_verb::{access::Role, cluster, container, namespace, token};
use serde_json::json;

/// Bytes of a request for a token.
pub const TOKEN_BYTES: usize = 64 << 10;

fn containers() -> [Operation; 3] {
    let text = || json!({"type": "string"});
    [
        Operation::of::<container::List>(
            "GET",
            "/v1/containers",
            "listContainers",
            "Containers: what runs where",
            "containers by function",
        )
        .query("namespace", text(), "of functions of this namespace")
        .query("function", text(), "of functions of this name")
        .query("worker", text(), "on this worker"),
        part_of_output(Operation::of::<container::Logs>(
            "GET",
            "/v1/containers/{id}/logs",
            "getContainerLogs",
            "What a container wrote",
            "",
        )),
        Operation::of::<container::Stop>(
            "POST",
            "/v1/containers/{id}/stop",
            "stopContainer",
            "Stops a container; what it holds runs elsewhere",
            "it stops",
        )
        .status(202),
    ]
}

fn workers() -> [Operation; 7] {
    let worker = || Shape::of::<cluster::WorkerView>();
    [
        Operation::of::<cluster::Schedulers>(
            "GET",
            "/v1/schedulers",
            "listSchedulers",
            "Schedulers, and how many shards functions are spread over",
            "schedulers by name",
        ),
        Operation::of::<cluster::Workers>(
            "GET",
            "/v1/workers",
            "listWorkers",
            "Workers with what they have and what of it is free",
            "workers by name",
        ),
        Operation::of::<cluster::Worker>("GET", "/v1/workers/{id}", "getWorker", "A worker", "the worker"),
        Operation::of::<cluster::TurnWorker>(
            "POST",
            "/v1/workers/{id}/drain",
            "drainWorker",
            "Places nothing more on a worker",
            "",
        )
        .about("Running inputs finish, idle containers stop.")
        .answers(200, "the worker", JSON, worker()),
        Operation::of::<cluster::TurnWorker>(
            "POST",
            "/v1/workers/{id}/resume",
            "resumeWorker",
            "Places on a worker again",
            "",
        )
        .answers(200, "the worker", JSON, worker()),
        Operation::of::<cluster::RevokeWorker>(
            "POST",
            "/v1/workers/{id}/revoke",
            "revokeWorker",
            "Revokes a worker's certificate",
            "revoked",
        )
        .about("Its link ends, and it is never let in again by this name."),
        Operation::of::<cluster::Invite>(
            "POST",
            "/v1/join-tokens",
            "createJoinToken",
            "Makes a token that lets one worker join, within ten minutes",
            "the token",
        )
        .status(201),
    ]
}

fn namespaces() -> [Operation; 3] {
    let policy = json!({"weight": 3, "quota": {"containers": 100, "gpus": 4}});
    [
        Operation::of::<namespace::List>(
            "GET",
            "/v1/namespaces",
            "listNamespaces",
            "Namespaces with weights, quotas and what they hold",
            "namespaces by name",
        ),
        Operation::of::<namespace::Get>("GET", "/v1/namespaces/{ns}", "getNamespace", "A namespace", "the namespace"),
        Operation::of::<namespace::Set>(
            "PUT",
            "/v1/namespaces/{ns}",
            "setNamespace",
            "Sets a namespace's weight and quota",
            "the namespace",
        )
        .takes(Shape::of::<Policy>(), policy, SPEC_BYTES),
    ]
}

fn tokens() -> [Operation; 3] {
    [
        Operation::of::<token::List>(
            "GET",
            "/v1/tokens",
            "listTokens",
            "Tokens, without what they are",
            "tokens by name",
        ),
        Operation::of::<token::Make>(
            "POST",
            "/v1/tokens",
            "createToken",
            "Makes a token; it is told here and never again",
            "the token",
        )
        .takes(
            Shape::of::<token::Make>(),
            json!({"name": "ci", "role": "deploy", "namespaces": ["default"]}),
            TOKEN_BYTES,
        )
        .status(201),
        Operation::of::<token::Revoke>("DELETE", "/v1/tokens/{id}", "revokeToken", "Revokes a token at once", "")
            .empty(204, "revoked")
            .refuses(&[409]),
    ]
}

fn server() -> [Operation; 7] {
    let everybody = (Role::Read, Scope::List);
    [
        Operation::of::<cluster::Version>("GET", "/v1/version", "getVersion", "What software answers", "its version"),
        Operation::plain("GET", "/healthz", "getHealth", "Whether the process lives; no token needed", everybody)
            .answers(200, "it lives", JSON, Shape::of::<Health>()),
        Operation::plain("GET", "/readyz", "getReadiness", "Whether it can accept work; no token needed", everybody)
            .answers(200, "it can", JSON, Shape::of::<Health>())
            .refuses(&[507]),
        Operation::plain("GET", "/metrics", "getMetrics", "Metrics for Prometheus", (Role::Read, Scope::Cluster))
            .answers(200, "OpenMetrics text", "application/openmetrics-text", Shape::text()),
        Operation::plain(
            "GET",
            "/v1/events",
            "streamEvents",
            "Events as they happen: deploys, scale decisions, containers, workers",
            everybody,
        )
        .about("Server-sent events. Who sees some namespaces sees what is about those.")
        .query("namespace", json!({"type": "string"}), "about functions of this namespace")
        .query("function", json!({"type": "string"}), "about functions of this name")
        .query("after", json!({"type": "string"}), "the id of an event: those after it come first")
        .header("Last-Event-ID", json!({"type": "string"}), "the same, as browsers send it")
        .answers(200, "server-sent events", "text/event-stream", Shape::text()),
        Operation::plain("GET", "/openapi.json", "getDocument", "This document", everybody).answers(
            200,
            "OpenAPI 3.1",
            JSON,
            Shape::foreign("OpenAPI 3.1"),
        ),
        Operation::plain("GET", "/", "getHome", "Where to go from here", everybody).answers(
            200,
            "a page",
            "text/html",
            Shape::text(),
        ),
    ]
}

pub fn operations() -> Vec<Operation> {
    [
        tagged("containers", containers()),
        tagged("workers", workers()),
        tagged("namespaces", namespaces()),
        tagged("tokens", tokens()),
        tagged("server", server()),
    ]
    .into_iter()
    .flatten()
    .collect()
}
