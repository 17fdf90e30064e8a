//! What every request passes before it is routed: a path that has one reading, authentication, and the count of answers.
//! What it may do is decided where its route is known: see [`super::route`].

use super::{
    gate::{Gate, Visitor, missing},
    interface,
    problem::Problem,
};
use crate::{api::Api, telemetry::metrics::ApiLabel};
use actix_web::{
    Error, HttpMessage, HttpRequest, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::Next,
    web,
};
use capstan_common::refusal::{Code, Refusal};
use capstan_verb::access::Subject;
use percent_encoding::percent_decode_str;
use std::time::Instant;

/// What is answered to anybody.
const PUBLIC: [&str; 2] = ["/healthz", "/readyz"];

/// The route that a request was found to have, for the count of answers.
#[derive(Clone, Copy)]
pub struct Route(pub &'static str);

/// A path whose escapes are whole, and whose text is UTF-8, has one reading, however often and by whom it is decoded.
fn has_one_reading(path: &str) -> bool {
    let mut rest = path.as_bytes();
    while let Some(at) = memchr::memchr(b'%', rest) {
        if !matches!(rest.get(at + 1..at + 3), Some(digits) if digits.iter().all(u8::is_ascii_hexdigit)) {
            return false;
        }
        rest = &rest[at + 3..];
    }
    percent_decode_str(path).decode_utf8().is_ok()
}

async fn admit(request: &ServiceRequest, api: &Api) -> Result<Visitor, Refusal> {
    if !has_one_reading(request.path()) {
        let detail = "the path's percent-encoding is not whole: write % as %25, and text as UTF-8";
        return Err(Refusal::new(Code::Malformed, detail));
    }
    if PUBLIC.contains(&request.path()) {
        return Ok(Visitor { subject: Subject::admin(), token: "".into(), spent: true });
    }
    let gate = request.app_data::<web::Data<Gate>>().ok_or_else(|| missing().refusal().clone())?;
    gate.identify(request, api).await
}

/// Who asks; handlers of lists show it its own namespaces only.
pub fn subject(request: &HttpRequest) -> Subject {
    Visitor::of(request).subject
}

/// Lets a request through or answers it, and counts the answer.
pub async fn guard(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let begun = Instant::now();
    let api = request.app_data::<web::Data<Api>>().cloned();
    let admitted = match &api {
        Some(api) => admit(&request, api).await,
        None => Err(missing().refusal().clone()),
    };
    let proxied = request.path().starts_with("/web/");
    if request.method() == Method::HEAD && !proxied {
        // Answered as GET; the server leaves the body out.
        request.head_mut().method = Method::GET;
    }
    let response = match admitted {
        Err(refusal) => {
            let answer = Problem::from(refusal).error_response();
            request.into_response(answer).map_into_right_body()
        }
        Ok(visitor) => {
            request.extensions_mut().insert(visitor);
            let response = next.call(request).await?;
            if proxied { response.map_into_left_body() } else { explain_bare(response) }
        }
    };
    if let Some(api) = api {
        let route = response.request().extensions().get::<Route>().map_or("none", |route| route.0);
        let label = ApiLabel { route: route.into(), status: response.status().as_u16() };
        let histogram = &api.telemetry().metrics.api;
        histogram.get_or_create(&label).observe(begun.elapsed().as_secs_f64());
    }
    Ok(response)
}

/// The framework's own errors have no body: give them one.
fn explain_bare<B: MessageBody>(mut response: ServiceResponse<B>) -> ServiceResponse<EitherBody<B>> {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    let code = match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::BAD_REQUEST if !response.headers().contains_key(header::CONTENT_TYPE) => Code::Malformed,
        _ => return response.map_into_left_body(),
    };
    let request = response.request().clone();
    let detail = match code {
        Code::MethodNotAllowed => {
            format!("{} is not possible on {}; /docs lists what is", request.method(), request.path())
        }
        _ => "the request cannot be read".to_owned(),
    };
    let mut answer = Problem::new(code, detail).error_response();
    let route = request.extensions().get::<Route>().copied();
    let operations = route.and_then(|route| interface::operations(route.0));
    if let Some(operations) = operations.filter(|_| code == Code::MethodNotAllowed) {
        let mut allowed: Vec<&str> = operations.keys().copied().collect();
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        if let Ok(value) = allowed.join(", ").parse() {
            answer.headers_mut().insert(header::ALLOW, value);
        }
    }
    ServiceResponse::new(request, answer).map_into_right_body()
}

#[cfg(test)]
mod tests {
    use super::has_one_reading;

    #[test]
    fn a_path_with_half_an_escape_is_not_read() {
        for good in ["/v1/calls", "/v1/%74okens", "/a/%2541", "/a/%C3%A4", "/f%3Bk=1"] {
            assert!(has_one_reading(good), "{good}");
        }
        for bad in ["/v1/calls/%%36%33a", "/a%", "/a%4", "/a%zz", "/a%ff", "/%2%35"] {
            assert!(!has_one_reading(bad), "{bad}");
        }
    }
}
