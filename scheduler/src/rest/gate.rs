//! Who asks, and how often: tokens, open loopback doors, rates.

use super::{
    claim::{self, Heard},
    forward::hops,
    problem::Problem,
    web::{Proxy, TOKEN_HEADER},
};
use crate::{
    api::Api,
    config::{Here, SchedulerConfig},
    peer::{self, Peer},
    route::PATH,
};
use actix_web::{
    HttpMessage, HttpRequest,
    dev::ServiceRequest,
    http::header::{self, HeaderMap, HeaderName},
    web,
};
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
};
use capstan_verb::{
    RIGHTS,
    access::{Role, Subject},
};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use subtle::ConstantTimeEq;

/// How often buckets that are full again are forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// Who asks where no token is needed, for what is counted by token.
const NOBODY: &str = "";

/// A token bucket for each key.
struct Rate {
    /// What one may send in any one second.
    burst: DefaultKeyedRateLimiter<Arc<str>>,
    /// What it may send for long: bursts are paid back here.
    sustained: DefaultKeyedRateLimiter<Arc<str>>,
    clock: DefaultClock,
    forgot: Mutex<Instant>,
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
            forgot: Mutex::new(Instant::now()),
        }
    }

    fn check(&self, key: &Arc<str>, whose: &str) -> Result<(), Refusal> {
        self.forget();
        let both = self.burst.check_key(key).and_then(|()| self.sustained.check_key(key));
        both.map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            Refusal::exhausted(format!("too many requests {whose}"), wait.as_secs() as u32 + 1)
        })
    }

    /// Forgets keys whose buckets are full again, now and then.
    fn forget(&self) {
        let mut forgot = self.forgot.lock().unwrap_or_else(PoisonError::into_inner);
        if forgot.elapsed() > FORGET {
            *forgot = Instant::now();
            self.burst.retain_recent();
            self.sustained.retain_recent();
        }
    }
}

/// Somebody who was let in.
#[derive(Clone)]
pub struct Visitor {
    /// What they may do, and where.
    pub subject: Subject,
    /// Their token's id; empty where none is needed.
    pub token: Arc<str>,
    /// Whether `Authorization` carries a token of Capstan's: that is none of a container's business.
    pub spent: bool,
}

impl Visitor {
    /// Who asks. What did not pass the gate may do nothing.
    pub fn of(request: &HttpRequest) -> Self {
        let nobody = || Self {
            subject: Subject { role: Role::Read, namespaces: Some(Default::default()) },
            token: NOBODY.into(),
            spent: true,
        };
        request.extensions().get::<Self>().cloned().unwrap_or_else(nobody)
    }
}

/// Who may pass, and how often.
pub struct Gate {
    tokens: Vec<String>,
    /// Whose functions run on this machine.
    here: Option<Here>,
    by_token: Rate,
    /// Of each function's server, if there is a limit.
    by_server: Option<Rate>,
    heard: Heard,
}

impl Gate {
    /// As configured.
    pub fn new(config: &SchedulerConfig) -> Self {
        let rate = |per_s| {
            Rate::of(per_s, per_s.saturating_mul(config.rate_burst / config.rate_per_s.max(1)), config.rate_burst_s)
        };
        Self {
            tokens: config.tokens.clone(),
            here: config.here.clone(),
            by_token: Rate::of(config.rate_per_s, config.rate_burst, config.rate_burst_s),
            by_server: Some(config.web_rate_per_s).filter(|per_s| *per_s > 0).map(rate),
            heard: Heard::default(),
        }
    }

    /// Whether a function's server may have one more request through `/web`.
    pub fn may_pass(&self, server: &FunctionKey) -> Result<(), Refusal> {
        let Some(rate) = &self.by_server else { return Ok(()) };
        rate.check(&server.to_string().into(), "to this function's server (scheduler.web_rate_per_s)")
    }

    /// Whether no token is needed. The one meaning of "open": neither the configuration nor anybody else has made a token.
    fn is_open(&self, api: &Api) -> bool {
        self.tokens.is_empty() && !api.has_tokens()
    }

    /// Refuses a function of this machine that asks an open door without its token: it is not the operator.
    fn must_be_no_function(&self, request: &ServiceRequest) -> Result<(), Refusal> {
        let Some(here) = &self.here else { return Ok(()) };
        match peer::of(request.request(), &here.users) {
            Peer::Anybody => Ok(()),
            Peer::Function => Err(Refusal::new(
                Code::Unauthenticated,
                "a function has the rights of its own token: send what CAPSTAN_TOKEN holds as `Authorization: Bearer TOKEN`",
            )),
            Peer::Unknown => Err(Refusal::new(
                Code::Unauthenticated,
                "nobody holds the connection's other end any more, so that nobody can say whose it is: keep it open until the answer",
            )),
        }
    }

    /// Whose token this is: its id, and what it may do.
    fn find(&self, given: &str, api: &Api) -> Option<(Arc<str>, Subject)> {
        // Every token of the configuration is compared, in constant time: neither its position nor a common start can be measured.
        let mut found = None;
        for (position, token) in self.tokens.iter().enumerate() {
            if bool::from(token.as_bytes().ct_eq(given.as_bytes())) {
                found = Some((Arc::from(position.to_string()), Subject::admin()));
            }
        }
        found.or_else(|| api.bearer(given).map(|token| (token.id, token.subject)))
    }

    /// Who asks, if that is somebody who may ask at all now.
    fn admit(&self, request: &ServiceRequest, api: &Api) -> Result<Visitor, Refusal> {
        if self.is_open(api) {
            let subject = same_origin(request).map(|()| Subject::admin())?;
            self.must_be_no_function(request)?;
            return Ok(Visitor { subject, token: NOBODY.into(), spent: false });
        }
        let bearer = bearer(request.headers());
        let own = header(request, TOKEN_HEADER).map(str::trim).filter(|_| request.path().starts_with("/web/"));
        let (token, subject) = self.find(own.or(bearer).unwrap_or_default(), api).ok_or_else(|| {
            Refusal::new(Code::Unauthenticated, "send a valid token as `Authorization: Bearer TOKEN`")
        })?;
        let spent = own.is_none() || bearer.is_some_and(|bearer| self.find(bearer, api).is_some());
        // SPEC D4: new inputs, and what changes something. Looking is free.
        if !is_a_look(request) {
            self.by_token.check(&token, "with this token")?;
        }
        Ok(Visitor { subject, token, spent })
    }

    /// The function that asks with its own token, if its container lives.
    async fn function(&self, request: &ServiceRequest, api: &Api) -> Result<Option<Visitor>, Refusal> {
        let Some((token, claim)) = bearer(request.headers()).and_then(|token| Some((token, api.claim(token)?))) else {
            return Ok(None);
        };
        let proxy = request.app_data::<web::Data<Proxy>>().ok_or_else(|| missing().refusal().clone())?;
        if !claim::lives((api, proxy, &self.heard), (&claim, token), hops(request.request())).await? {
            return Ok(None);
        }
        // A container's own calls count for no token's rate; pages and proxies have their own limits.
        let token = format!("function:{}", claim.container).into();
        Ok(Some(Visitor { subject: claim.subject, token, spent: true }))
    }

    /// Who asks; a token that is not known here may be one that another scheduler has just made.
    pub async fn identify(&self, request: &ServiceRequest, api: &Api) -> Result<Visitor, Refusal> {
        if let Some(function) = self.function(request, api).await? {
            return Ok(function);
        }
        // Another scheduler, which asks for itself: verbs alone.
        if request.path().starts_with(PATH)
            && let Some(subject) = bearer(request.headers()).and_then(|token| api.scheduler_subject(token))
        {
            return Ok(Visitor { subject, token: "scheduler".into(), spent: true });
        }
        match self.admit(request, api) {
            Err(refusal) if refusal.code == Code::Unauthenticated && api.look_for_tokens().await => {
                self.admit(request, api)
            }
            known => known,
        }
    }
}

fn header<'a>(request: &'a ServiceRequest, name: &str) -> Option<&'a str> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

/// The token in `Authorization`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a request changes nothing and asks no function's server.
fn is_a_look(request: &ServiceRequest) -> bool {
    let reads = |verb: &str| RIGHTS.iter().any(|rights| rights.verb == verb && rights.role == Role::Read);
    match request.path().strip_prefix(PATH) {
        Some(verb) => reads(verb),
        None => request.method().is_safe() && !request.path().starts_with("/web/"),
    }
}

/// Without tokens only this machine can reach us, but its browser can be led here by a foreign page. Such requests carry a
/// foreign `Host`, an `Origin` that is not the API's own, or say that they come from another site.
fn same_origin(request: &ServiceRequest) -> Result<(), Refusal> {
    let (host, origin) = (header(request, "host"), header(request, "origin"));
    let refused = |value: &str, why: &str| {
        let shown: String = value.chars().take(80).collect();
        Err(Refusal::new(Code::Forbidden, format!("`{shown}` {why}; without tokens only local requests are served")))
    };
    // A target may name a host of its own.
    let target = request.uri().authority().map(|authority| authority.as_str());
    if let Some(foreign) = host.into_iter().chain(target).find(|host| !is_local(host)) {
        return refused(foreign, "is not an address of this machine");
    }
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, at)| host.is_some_and(|host| host == at));
    if let Some(origin) = origin.filter(|origin| !own(origin)) {
        return refused(origin, "is another page than Capstan's own");
    }
    let site = header(request, "sec-fetch-site").filter(|site| !matches!(*site, "same-origin" | "none"));
    site.map_or(Ok(()), |_| refused("Sec-Fetch-Site", "says that another page asks"))
}

/// Whether a `Host` names this machine.
fn is_local(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').unwrap_or_default(),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    is_port && (name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

/// Whether the gate is shared by all threads of a server; without it nobody passes.
pub fn missing() -> Problem {
    Problem::new(Code::Internal, "the door has no guard")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_burst_to_five_times_its_rate_for_five_seconds() {
        // SPEC M07, decision D4: with nothing paid back meanwhile, 4 × 200 a second are saved up for 5 s.
        let gate = Gate::new(&SchedulerConfig::default());
        let in_one_second = (0..2_000).filter(|_| gate.by_token.burst.check_key(&"a".into()).is_ok()).count();
        assert!((1_000..1_050).contains(&in_one_second), "{in_one_second}");
        let saved = (0..10_000).filter(|_| gate.by_token.sustained.check_key(&"a".into()).is_ok()).count();
        assert!((4_000..4_100).contains(&saved), "{saved}");
    }

    #[test]
    fn each_functions_server_has_a_rate_of_its_own_where_one_is_set() {
        // SPEC M08, decision D4
        let config = SchedulerConfig { web_rate_per_s: 200, ..SchedulerConfig::default() };
        let gate = Gate::new(&config);
        let passed = |name: &str| {
            let server = FunctionKey::new("default", name);
            (0..2_000).filter(|_| gate.may_pass(&server).is_ok()).count()
        };
        assert!((1_000..1_050).contains(&passed("site")));
        assert!((1_000..1_050).contains(&passed("other")));
        let open = Gate::new(&SchedulerConfig::default());
        assert!((0..5_000).all(|_| open.may_pass(&FunctionKey::new("default", "site")).is_ok()));
    }

    #[test]
    fn only_addresses_of_this_machine_are_local() {
        for local in ["127.0.0.1:7070", "localhost", "[::1]:7070", "127.8.9.1"] {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "example.com",
            "10.0.0.1:7070",
            "localhost.example.com",
            "127.0.0.1:7070@example.com",
            "[::1]example.com",
            "null",
            "",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }
}
