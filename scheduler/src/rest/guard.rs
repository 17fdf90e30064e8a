//! What every request passes: authentication, the rate limit, and the count of answers.

use super::{
    openapi::{self, Scope},
    problem::Problem,
    web::TOKEN_HEADER,
};
use crate::{api::Api, config::SchedulerConfig, telemetry::metrics::ApiLabel};
use actix_web::{
    Error, HttpMessage, HttpRequest, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::Next,
    web,
};
use capstan_common::refusal::{Code, Refusal};
use capstan_scheduler_core::access::{Denied, Object, Role, Subject};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use std::{num::NonZeroU32, sync::Arc, time::Instant};
use subtle::ConstantTimeEq;

/// A token bucket for each key.
struct Rate {
    /// What one may send in any one second.
    burst: DefaultKeyedRateLimiter<Arc<str>>,
    /// What it may send for long: bursts are paid back here.
    sustained: DefaultKeyedRateLimiter<Arc<str>>,
    clock: DefaultClock,
}

impl Rate {
    /// SPEC D4: the sustained rate, and `burst` a second for up to `for_s` seconds.
    fn of(per_s: u32, burst: u32, for_s: u32) -> Self {
        let positive = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let burst = burst.max(per_s);
        let saved = (burst - per_s).saturating_mul(for_s).max(per_s);
        let sustained = Quota::per_second(positive(per_s)).allow_burst(positive(saved));
        Self {
            burst: RateLimiter::keyed(Quota::per_second(positive(burst))),
            sustained: RateLimiter::keyed(sustained),
            clock: DefaultClock::default(),
        }
    }

    fn check(&self, key: &Arc<str>, whose: &str) -> Result<(), Refusal> {
        let both = self.burst.check_key(key).and_then(|()| self.sustained.check_key(key));
        both.map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            Refusal::exhausted(format!("too many requests {whose}"), wait.as_secs() as u32 + 1)
        })
    }
}

/// Who may pass, and how often.
pub struct Gate {
    tokens: Vec<String>,
    by_token: Rate,
    /// Of each function's server, if there is a limit.
    by_server: Option<Rate>,
}

impl Gate {
    /// As configured.
    pub fn new(config: &SchedulerConfig) -> Self {
        let rate = |per_s| {
            Rate::of(per_s, per_s.saturating_mul(config.rate_burst / config.rate_per_s.max(1)), config.rate_burst_s)
        };
        Self {
            tokens: config.tokens.clone(),
            by_token: Rate::of(config.rate_per_s, config.rate_burst, config.rate_burst_s),
            by_server: Some(config.web_rate_per_s).filter(|per_s| *per_s > 0).map(rate),
        }
    }

    /// Whether a function's server may have one more request through `/web`.
    fn may_pass(&self, path: &str) -> Result<(), Refusal> {
        let Some((rate, rest)) = self.by_server.as_ref().zip(path.strip_prefix("/web/")) else { return Ok(()) };
        let server = rest.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        rate.check(&server.into(), "to this function's server (scheduler.web_rate_per_s)")
    }

    /// Who asks, if that is somebody who may ask at all now.
    fn bearer(&self, request: &ServiceRequest, api: &Api) -> Result<Subject, Refusal> {
        if matches!(request.path(), "/healthz" | "/readyz") {
            return Ok(Subject::admin());
        }
        if self.tokens.is_empty() && !api.has_tokens() {
            return same_origin(request).map(|()| Subject::admin());
        }
        let given = token_of(request);
        // Every token of the configuration is compared, in constant time: neither its position nor a common start can be measured.
        let mut found = None;
        for (position, token) in self.tokens.iter().enumerate() {
            if bool::from(token.as_bytes().ct_eq(given.as_bytes())) {
                found = Some((Arc::from(position.to_string()), Subject::admin()));
            }
        }
        let found = found.or_else(|| api.bearer(given).map(|token| (token.id, token.subject)));
        let (key, subject) = found.ok_or_else(|| {
            Refusal::new(Code::Unauthenticated, "send a valid token as `Authorization: Bearer TOKEN`")
        })?;
        self.by_token.check(&key, "with this token")?;
        Ok(subject)
    }
}

/// Whether a subject may do what it asks for. What it may not see does not exist for it.
async fn authorize(request: &ServiceRequest, subject: &Subject, api: &Arc<Api>) -> Result<(), Refusal> {
    let pattern = request.match_pattern().unwrap_or_default();
    let pattern = if pattern.starts_with("/web/") { "/web/{ns}/{fn}/{path}".to_owned() } else { pattern };
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let Some(operations) = openapi::operations(&pattern) else { return Ok(()) };
    let proxied = pattern.starts_with("/web/");
    let operation = operations.get(method.as_str()).or_else(|| operations.values().next().filter(|_| proxied));
    // What does not exist is told by the route.
    let Some(operation) = operation else { return Ok(()) };
    let part = |name: &str| part_of(&pattern, request.path(), name);
    let owner;
    let object = match operation.scope {
        Scope::Namespace => {
            owner = Some(part("ns"));
            owner.as_deref().map_or(Object::Cluster, Object::In)
        }
        // Only those of some namespaces need to be looked after: for others it is as good as any.
        Scope::Call | Scope::Container if subject.namespaces.is_none() => Object::List,
        Scope::Call => {
            owner = match part("id").parse() {
                Ok(call) => api.namespace_of_call(call).await,
                Err(_) => None,
            };
            // What is unknown here says so itself, or is its owner's to look after.
            owner.as_deref().map_or(Object::List, Object::In)
        }
        Scope::Container => {
            owner = part("id").parse().ok().and_then(|container| api.namespace_of_container(container));
            // Its output may be kept longer than its function is known: that is for those who see everything. Where there are
            // others, one of them may own it, and looks after it.
            let unknown =
                if api.is_clustered() && !api.keeps_output(&part("id")) { Object::List } else { Object::In("") };
            owner.as_deref().map_or(unknown, Object::In)
        }
        Scope::List => Object::List,
        Scope::Cluster => Object::Cluster,
    };
    subject.authorize(operation.role, object).map_err(|denied| match denied {
        Denied::Hidden => Refusal::new(Code::NotFound, "it does not exist"),
        Denied::Role => {
            let detail = format!("the token's role is {}, this needs {}", text(subject.role), text(operation.role));
            Refusal::new(Code::Forbidden, detail)
        }
        Denied::Scope => {
            Refusal::new(Code::Forbidden, "the token holds in some namespaces, this concerns all: use a token of all")
        }
    })
}

/// The part of a path that stands where the pattern has a name. Routing has not been done yet.
fn part_of(pattern: &str, path: &str, name: &str) -> String {
    let named = format!("{{{name}}}");
    let written =
        pattern.split('/').zip(path.split('/')).find(|(part, _)| *part == named).map_or("", |(_, written)| written);
    percent_encoding::percent_decode_str(written).decode_utf8_lossy().into_owned()
}

fn text(role: Role) -> String {
    serde_json::to_value(role).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Who asks; handlers of lists show it its own namespaces only.
pub fn subject(request: &HttpRequest) -> Subject {
    request
        .extensions()
        .get::<Subject>()
        .cloned()
        .unwrap_or(Subject { role: Role::Read, namespaces: Some(Default::default()) })
}

/// The token of a request; one through `/web` may bring it in a header of its own, so that `Authorization` reaches the container.
fn token_of(request: &ServiceRequest) -> &str {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(token) = header(TOKEN_HEADER).filter(|_| request.path().starts_with("/web/")) {
        return token.trim();
    }
    let given = header(header::AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
    given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map_or("", |(_, token)| token.trim())
}

/// Without tokens only this machine can reach us, but its browser can be led here by a foreign page: such requests carry a
/// foreign `Origin` or a foreign `Host`.
fn same_origin(request: &ServiceRequest) -> Result<(), Refusal> {
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
    let foreign = [header(header::HOST), header(header::ORIGIN)].into_iter().flatten().find(|value| !is_local(value));
    match foreign {
        Some(value) => {
            let shown: String = value.chars().take(80).collect();
            let detail =
                format!("`{shown}` is not an address of this machine; without tokens only local requests are served");
            Err(Refusal::new(Code::Forbidden, detail))
        }
        None => Ok(()),
    }
}

fn is_local(value: &str) -> bool {
    let host = value.split_once("://").map_or(value, |(_, host)| host);
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Who asks; a token that is not known here may be one that another scheduler has just made.
async fn identify(gate: &Gate, request: &ServiceRequest, api: &Api) -> Result<Subject, Refusal> {
    match gate.bearer(request, api) {
        Err(refusal) if refusal.code == Code::Unauthenticated && api.look_for_tokens().await => {
            gate.bearer(request, api)
        }
        known => known,
    }
}

/// Lets a request through or answers it, and counts the answer.
pub async fn guard(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let begun = Instant::now();
    let (gate, door) = (request.app_data::<web::Data<Gate>>().cloned(), request.app_data::<web::Data<Api>>().cloned());
    let allowed = match (gate, door) {
        (Some(gate), Some(api)) => match identify(&gate, &request, &api).await {
            Ok(subject) => {
                let may = authorize(&request, &subject, &api).await.and_then(|()| gate.may_pass(request.path()));
                request.extensions_mut().insert(subject);
                may
            }
            Err(refusal) => Err(refusal),
        },
        _ => Err(Refusal::new(Code::Internal, "the door has no guard")),
    };
    let allowed = allowed.and_then(|()| known_parameters(&request));
    let proxied = request.path().starts_with("/web/");
    if request.method() == Method::HEAD && !proxied {
        // Answered as GET; the server leaves the body out.
        request.head_mut().method = Method::GET;
    }
    let api = request.app_data::<web::Data<Api>>().cloned();
    let response = match allowed {
        Err(refusal) => {
            drop(request.extensions());
            let answer = Problem::from(refusal).error_response();
            request.into_response(answer).map_into_right_body()
        }
        Ok(()) if proxied => next.call(request).await?.map_into_left_body(),
        Ok(()) => next.call(request).await.map(|r| explain_bare(r))?,
    };
    if let Some(api) = api {
        let route = response.request().match_pattern().unwrap_or_else(|| "none".into());
        let label = ApiLabel { route, status: response.status().as_u16() };
        let histogram = &api.telemetry().metrics.api;
        histogram.get_or_create(&label).observe(begun.elapsed().as_secs_f64());
    }
    Ok(response)
}

/// A parameter that the interface does not describe is a mistake, not something to pass over.
fn known_parameters(request: &ServiceRequest) -> Result<(), Refusal> {
    if request.query_string().is_empty() || matches!(request.path(), "/healthz" | "/readyz" | "/metrics") {
        return Ok(());
    }
    let Some(operations) = request.match_pattern().and_then(|pattern| openapi::operations(&pattern)) else {
        return Ok(());
    };
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let Some(known) = operations.get(method.as_str()) else { return Ok(()) };
    for (name, _) in form_urlencoded::parse(request.query_string().as_bytes()) {
        if !known.parameters.iter().any(|k| *k == name) {
            let detail = match known.parameters.as_slice() {
                [] => "is not a parameter; this path takes none".to_owned(),
                known => format!("is not a parameter; this path takes {}", known.join(", ")),
            };
            return Err(Refusal::field(&name, detail));
        }
    }
    Ok(())
}

/// The framework's own errors have no body: give them one.
fn explain_bare<B: MessageBody>(response: ServiceResponse<B>) -> ServiceResponse<EitherBody<B>> {
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
    let operations = request.match_pattern().and_then(|pattern| openapi::operations(&pattern));
    if let Some(operations) = operations.filter(|_| code == Code::MethodNotAllowed) {
        let mut allowed: Vec<&str> = operations.keys().map(String::as_str).collect();
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
    use super::{Gate, is_local, part_of};
    use crate::config::SchedulerConfig;

    #[test]
    fn a_token_may_burst_to_five_times_its_rate_for_five_seconds() {
        // SPEC D4 M07: with nothing paid back meanwhile, 4 × 200 a second are saved up for 5 s.
        let gate = Gate::new(&SchedulerConfig::default());
        let in_one_second = (0..2_000).filter(|_| gate.by_token.burst.check_key(&"a".into()).is_ok()).count();
        assert!((1_000..1_050).contains(&in_one_second), "{in_one_second}");
        let saved = (0..10_000).filter(|_| gate.by_token.sustained.check_key(&"a".into()).is_ok()).count();
        assert!((4_000..4_100).contains(&saved), "{saved}");
    }

    #[test]
    fn each_functions_server_has_a_rate_of_its_own_where_one_is_set() {
        // SPEC D4 M08
        let config = SchedulerConfig { web_rate_per_s: 200, ..SchedulerConfig::default() };
        let gate = Gate::new(&config);
        let passed = |path: &str| (0..2_000).filter(|_| gate.may_pass(path).is_ok()).count();
        assert!((1_000..1_050).contains(&passed("/web/default/site/a/b")));
        assert!((1_000..1_050).contains(&passed("/web/default/other")));
        assert!(gate.may_pass("/v1/calls").is_ok());
        let open = Gate::new(&SchedulerConfig::default());
        assert!((0..5_000).all(|_| open.may_pass("/web/default/site").is_ok()));
    }

    #[test]
    fn parts_of_paths_are_found_by_their_names() {
        let pattern = "/v1/namespaces/{ns}/functions/{fn}/invoke";
        let path = "/v1/namespaces/a%20b/functions/f;v=1/invoke";
        assert_eq!(part_of(pattern, path, "ns"), "a b");
        assert_eq!(part_of(pattern, path, "fn"), "f;v=1");
        assert_eq!(part_of("/web/{ns}/{fn}/{path}", "/web/mine", "ns"), "mine");
        assert_eq!(part_of(pattern, path, "id"), "");
    }

    #[test]
    fn only_addresses_of_this_machine_are_local() {
        for local in ["127.0.0.1:7070", "localhost", "[::1]:7070", "http://localhost:3000", "127.8.9.1"] {
            assert!(is_local(local), "{local}");
        }
        for foreign in ["example.com", "http://example.com", "10.0.0.1:7070", "localhost.example.com", "null", ""] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }
}
