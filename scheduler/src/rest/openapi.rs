//! The interface's own description, and the page that shows it.

use actix_web::HttpResponse;
use capstan_verb::access::Role;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};
use utoipa_swagger_ui::{Config, SwaggerUi};

const DOCUMENT: &str = include_str!("openapi.json");

/// What one method of a path takes and needs.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Names of its query parameters.
    pub parameters: Vec<String>,
    /// The role that it needs.
    pub role: Role,
    /// What it is about.
    pub scope: Scope,
}

/// What an operation is about; that says where a token of some namespaces may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The namespace of its path.
    Namespace,
    /// The call of its path.
    Call,
    /// The container of its path.
    Container,
    /// All namespaces, of which each token is shown its own.
    List,
    /// The cluster.
    Cluster,
}

/// The methods of one path.
pub type Operations = BTreeMap<String, Operation>;

/// What the document says of a route.
pub fn operations(pattern: &str) -> Option<&'static Operations> {
    static ALL: LazyLock<BTreeMap<String, Operations>> = LazyLock::new(read);
    ALL.get(pattern)
}

fn read() -> BTreeMap<String, Operations> {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    let named = |parameter: &Value| {
        let in_query = parameter["in"] == "query";
        parameter["name"].as_str().filter(|_| in_query).map(str::to_owned)
    };
    let parameters =
        |of: &Value| -> Vec<String> { of["parameters"].as_array().into_iter().flatten().filter_map(named).collect() };
    // What says nothing of itself is for those who may do everything.
    let operation = |of: &Value| Operation {
        parameters: parameters(of),
        role: serde_json::from_value(of["x-role"].clone()).unwrap_or(Role::Admin),
        scope: serde_json::from_value(of["x-scope"].clone()).unwrap_or(Scope::Cluster),
    };
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .map(|(path, operations)| {
            let listed = operations.as_object().into_iter().flatten().filter(|(method, _)| *method != "parameters");
            (path.clone(), listed.map(|(method, of)| (method.to_uppercase(), operation(of))).collect())
        })
        .collect()
}

/// The OpenAPI 3.1 document.
pub async fn document() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(DOCUMENT)
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
