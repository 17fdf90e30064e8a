//! The interface's own description, and the page that shows it.

use actix_web::{HttpResponse, web};
use utoipa_swagger_ui::{Config, SwaggerUi};

const DOCUMENT: &str = include_str!("openapi.json");

/// The OpenAPI 3.1 document.
pub async fn document() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(DOCUMENT)
}

/// A browser page for the document.
pub fn swagger() -> SwaggerUi {
    SwaggerUi::new("/docs/{_:.*}").config(Config::from("/openapi.json"))
}

/// Where to go from here.
pub async fn home(_: web::Data<crate::api::Api>) -> HttpResponse {
    let page = "<!doctype html><meta charset=\"utf-8\"><title>Capstan</title><h1>Capstan</h1><ul>\
        <li><a href=\"/docs/\">REST interface</a> (<a href=\"/openapi.json\">OpenAPI</a>)\
        <li><a href=\"/metrics\">metrics</a>\
        <li><a href=\"/v1/namespaces/default/functions\">functions</a>\
        <li><a href=\"/v1/workers\">workers</a>\
        <li><a href=\"/v1/containers\">containers</a>\
        <li><a href=\"/v1/calls\">calls</a></ul>";
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page)
}
