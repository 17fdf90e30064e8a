//! The interface's own description, written from its operations, and the page that shows it.

use super::{
    all,
    operation::{Answered, Content, Operation, Parameter, Taken},
    shape::Shape,
    shapes::Problem,
};
use actix_web::HttpResponse;
use capstan_common::{function::Retries, refusal::Code};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use utoipa_swagger_ui::{Config, SwaggerUi};

/// Refusals that every operation may answer with.
const ANYWHERE: [u16; 8] = [401, 403, 404, 405, 422, 429, 500, 503];
/// Refusals of those that take a body.
const OF_BODIES: [u16; 3] = [400, 413, 415];
/// What stands behind each tag.
const TAGS: [(&str, &str); 13] = [
    ("functions", "What may be run: deployed, listed, explained, removed."),
    ("autoscaler", "How many containers a function has; changed while it runs."),
    ("schedules", "Functions that run at set times."),
    ("secrets", "Sets of variables that functions have in their environment."),
    ("web", "Functions' own servers, behind a proxy."),
    ("calls", "Inputs: brought, waited for, read, cancelled."),
    ("containers", "Running instances of functions."),
    ("workers", "Machines that host containers, and the schedulers that place on them."),
    ("namespaces", "Who shares the cluster: weights and quotas."),
    ("tokens", "Who may ask what."),
    ("server", "The server itself: health, metrics, events, this document."),
    ("models", "Functions that serve models: scaled to zero, asked for by Prometheus' queries."),
    ("kubernetes", "Metrics as Kubernetes' autoscalers ask for them."),
];

/// The schema of a parameter of a path, and what it is.
fn in_path(name: &str, path: &str) -> (Value, &'static str) {
    let name_of = |pattern: &str| json!({"type": "string", "pattern": pattern});
    match name {
        "ns" => (name_of("^[a-zA-Z0-9._-]{1,128}$"), "the namespace; `default` always exists"),
        "fn" => (
            name_of("^[a-zA-Z0-9._-]{1,128}(;[a-zA-Z0-9_]{1,64}=[^;]*)*$"),
            "the function, or an instance of one with parameters, like Model;version=3.5",
        ),
        "id" if path.starts_with("/v1/calls") => (name_of("^(ca|fc)-[0-9a-f]{32}$"), "the call"),
        "id" if path.starts_with("/v1/containers") => (name_of("^ct-[0-9a-f]{16}$"), "the container"),
        "id" if path.starts_with("/v1/workers") => (json!({"type": "string"}), "the worker"),
        "index" => (json!({"type": "integer", "minimum": 0}), "the input's place in the call, from 0"),
        "path" => (json!({"type": "string"}), "any path, also with slashes, and any query"),
        "metric" => (json!({"type": "string"}), "the gauge"),
        "resource" => (json!({"type": "string"}), "variantautoscalings.llmd.ai"),
        "name" if path.starts_with("/apis/") => (json!({"type": "string"}), "the function, or * with a labelSelector"),
        "name" => (name_of("^[a-zA-Z0-9._-]{1,128}$"), "its name"),
        _ => (json!({"type": "string"}), "its id"),
    }
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let names = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = names.map(|name| {
        let (schema, about) = in_path(name, operation.path);
        json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema})
    });
    let others = operation.parameters.iter().map(|Parameter { place, name, about, schema, required }| {
        json!({"name": name, "in": place, "required": required, "description": about, "schema": schema})
    });
    in_path.chain(others).collect()
}

fn content<'a>(contents: impl IntoIterator<Item = &'a Content>) -> Value {
    let written = contents.into_iter().map(|Content { media, shape, example }| {
        let mut of = json!({"schema": shape.schema});
        if let Some(example) = example {
            of["example"] = example.clone();
        }
        ((*media).to_owned(), of)
    });
    Value::Object(written.collect())
}

/// What it means that a status is answered: the codes that travel with it.
fn refused(status: u16, foreign: Option<&Shape>) -> Value {
    let codes = Code::ALL.iter().filter(|code| code.http() == status);
    let codes: Vec<String> = codes.map(|code| format!("`{}`: {}", code.text(), code.title())).collect();
    let about = if codes.is_empty() { "refused".into() } else { codes.join("; ") };
    let mut content = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    if let Some(shape) = foreign {
        content["application/json"] = json!({"schema": shape.schema});
    }
    json!({"description": about, "content": content})
}

fn responses(operation: &Operation) -> Value {
    let mut all = Map::new();
    let of_body = operation.body.iter().flat_map(|_| OF_BODIES);
    // What changes something needs room in the store.
    let changes = (operation.method != "GET").then_some(507);
    for status in ANYWHERE.into_iter().chain(of_body).chain(changes).chain(operation.refusals.iter().copied()) {
        all.insert(status.to_string(), refused(status, operation.foreign_refusal.as_ref()));
    }
    if operation.path.starts_with("/v1/calls/") {
        all.insert("410".into(), refused(410, None));
    }
    for Answered { status, about, content: of } in &operation.answers {
        let mut answer = json!({"description": about});
        if let Some(of) = of {
            answer["content"] = content([of]);
        }
        let status = if *status == 0 { "default".into() } else { status.to_string() };
        all.insert(status, answer);
    }
    Value::Object(all)
}

fn written(operation: &Operation) -> Value {
    let mut of = json!({
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": parameters(operation),
        "responses": responses(operation),
        "x-role": operation.role.name(),
        "x-scope": operation.scope.name(),
    });
    let rights = format!("Needs the role `{}`.", operation.role.name());
    of["description"] = [operation.about, &rights].join(" ").trim().into();
    if let Some(verb) = operation.verb {
        of["x-verb"] = verb.into();
    }
    if let Some(Taken { contents, required, most }) = &operation.body {
        of["requestBody"] = json!({"required": required, "content": content(contents)});
        if let Some(most) = most {
            of["x-max-bytes"] = (*most).into();
            let lines =
                if contents.iter().any(|content| content.media == super::operation::NDJSON) { "line" } else { "body" };
            of["requestBody"]["description"] = format!("at most {most} bytes a {lines}").into();
        }
    }
    of
}

fn shapes(operation: &Operation) -> impl Iterator<Item = &Shape> {
    let taken = operation.body.iter().flat_map(|body| &body.contents);
    let answered = operation.answers.iter().filter_map(|answer| answer.content.as_ref());
    taken.chain(answered).map(|content| &content.shape)
}

/// The whole document.
pub fn write() -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    let operations = all();
    // Refusals are the same everywhere, and retries may be written in two ways: their type does not name what it refers to.
    let others = [Shape::of::<Problem>(), Shape::of::<Retries>()];
    for shape in operations.iter().flat_map(shapes).chain(&others) {
        schemas.extend(shape.named.clone());
    }
    for operation in &operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.to_lowercase()] = written(operation);
    }
    let used = TAGS.iter().filter(|(tag, _)| operations.iter().any(|operation| operation.tag == *tag));
    let tags: Vec<Value> = used.map(|(tag, about)| json!({"name": tag, "description": about})).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Capstan",
            "version": "1",
            "description": "Serverless functions on your own machines. Every error is a problem document with a stable code.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    })
}

/// The OpenAPI 3.1 document.
pub async fn document() -> HttpResponse {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| write().to_string());
    HttpResponse::Ok().content_type("application/json").body(DOCUMENT.as_str())
}

/// A browser page for the document.
pub fn swagger() -> SwaggerUi {
    SwaggerUi::new("/docs/{_:.*}").config(Config::from("/openapi.json"))
}

/// Where to go from here.
pub async fn home() -> HttpResponse {
    let page = "<!doctype html><meta charset=\"utf-8\"><title>Capstan</title><h1>Capstan</h1><ul>\
        <li><a href=\"/docs/\">REST interface</a> (<a href=\"/openapi.json\">OpenAPI</a>)\
        <li><a href=\"/metrics\">metrics</a>\
        <li><a href=\"/v1/namespaces/default/functions\">functions</a>\
        <li><a href=\"/v1/workers\">workers</a>\
        <li><a href=\"/v1/containers\">containers</a>\
        <li><a href=\"/v1/calls\">calls</a></ul>";
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page)
}
