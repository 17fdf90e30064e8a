//! Rights where the route is known. Each route is registered together with its entry of the interface's document, and lets
//! nothing through that this entry does not describe: no other method, no other parameter, nobody without the role.

use super::{
    gate::{Visitor, missing},
    guard::Route,
    interface::{self, Operation},
    problem::Problem,
};
use crate::route::rights;
use actix_web::{
    Error, HttpMessage, HttpResponse, Resource, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::Method,
    middleware::{Next, from_fn},
    web,
};
use capstan_common::refusal::{Code, Refusal};
use capstan_verb::{Scope, access::Subject};

/// The routes of a server as they are registered.
pub struct Routes<'a> {
    app: &'a mut web::ServiceConfig,
    /// All that were registered, for those who test each of them.
    pub patterns: Vec<&'static str>,
}

impl<'a> Routes<'a> {
    /// None yet.
    pub fn of(app: &'a mut web::ServiceConfig) -> Self {
        Self { app, patterns: Vec::new() }
    }

    /// Serves a path of the document by the methods that `serve` adds.
    pub fn at(&mut self, path: &'static str, serve: impl FnOnce(Resource) -> Resource) {
        self.alias(path, path, serve);
    }

    /// The same by another pattern than the document's.
    pub fn alias(&mut self, pattern: &'static str, path: &'static str, serve: impl FnOnce(Resource) -> Resource) {
        self.patterns.push(pattern);
        let wrapped = from_fn(move |request: ServiceRequest, next| enter(path, request, next));
        self.app.service(serve(web::resource(pattern)).wrap(wrapped));
    }
}

/// Lets a request into its route, or refuses it.
async fn enter(
    path: &'static str,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    request.extensions_mut().insert(Route(path));
    match allowed(path, &request) {
        Ok(()) => next.call(request).await.map(ServiceResponse::map_into_left_body),
        Err(None) => {
            let bare = HttpResponse::MethodNotAllowed().finish();
            Ok(request.into_response(bare).map_into_right_body())
        }
        Err(Some(refusal)) => {
            let answer = Problem::from(refusal).error_response();
            Ok(request.into_response(answer).map_into_right_body())
        }
    }
}

/// Whether a request may enter; without a refusal: its method is not one of the route's.
fn allowed(path: &'static str, request: &ServiceRequest) -> Result<(), Option<Refusal>> {
    let visitor = request.extensions().get::<Visitor>().cloned();
    let visitor = visitor.ok_or_else(|| Some(missing().refusal().clone()))?;
    let operations = interface::operations(path).ok_or(None)?;
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let proxied = path.starts_with("/web/");
    let operation = match operations.get(method.as_str()) {
        Some(operation) => operation,
        // A function's server knows its own methods.
        None if proxied => operations.values().next().ok_or(None)?,
        None => return Err(None),
    };
    authorize(operation, request, &visitor.subject)?;
    if !proxied {
        known_parameters(operation, request)?;
    }
    Ok(())
}

/// Where what a path names lies.
#[derive(serde::Deserialize)]
struct Place {
    ns: Option<String>,
}

/// Whether a subject may do what it asks for. What it may not see does not exist for it. Whose a call or a container is says its
/// own record, which is looked at by whoever owns it: here such a request needs the role alone.
fn authorize(operation: &Operation, request: &ServiceRequest, subject: &Subject) -> Result<(), Refusal> {
    let hidden = |what: &str| Refusal::new(Code::NotFound, what);
    // As handlers read it.
    let place: Place = request.match_info().load().map_err(|_| hidden("the path names nothing that exists"))?;
    let scope = match operation.scope {
        interface::Scope::Namespace => place.ns.as_deref().map_or(Scope::Cluster, Scope::In),
        interface::Scope::Record => Scope::OfRecord,
        interface::Scope::List => Scope::List,
        interface::Scope::Cluster => Scope::Cluster,
    };
    rights::authorize(operation.role, scope, subject)
}

/// A parameter that the interface does not describe is a mistake, not something to pass over.
fn known_parameters(operation: &Operation, request: &ServiceRequest) -> Result<(), Refusal> {
    if request.query_string().is_empty() || matches!(request.path(), "/healthz" | "/readyz" | "/metrics") {
        return Ok(());
    }
    for (name, _) in form_urlencoded::parse(request.query_string().as_bytes()) {
        let known: Vec<&str> = operation.query_names().collect();
        if !known.contains(&&*name) {
            let detail = match known.as_slice() {
                [] => "is not a parameter; this path takes none".to_owned(),
                known => format!("is not a parameter; this path takes {}", known.join(", ")),
            };
            return Err(Refusal::field(&name, detail));
        }
    }
    Ok(())
}
