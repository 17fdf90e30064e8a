//! Schedulers ask each other: the same verb, written as JSON, with the token of who asked first.
//!
//! The question goes to the other's REST interface, which sees for itself whose the token is and what it may do. A scheduler of
//! another version that does not know a verb says that it is not available.

use super::{Asker, Route, Run, rights::authorize};
use crate::{api::Api, cluster::Peer};
use bytes::Bytes;
use capstan_common::{
    identity,
    refusal::{Code, Refusal},
};
use capstan_verb::{Scope, Verb, all_verbs};
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, pki_types::ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

/// Where verbs are asked, before their names.
pub const PATH: &str = "/peer/";
/// Marks a request that another scheduler has passed on, and how often.
pub const FORWARDED: &str = "capstan-forwarded";
/// Where the JSON of a verb ends, and its input begins.
pub const VERB_LENGTH: &str = "capstan-verb-length";
/// The largest answer.
const ANSWER_MAX: usize = 64 << 20;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(30);

/// What a scheduler says of a verb.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said<A> {
    Answer(A),
    Refusal(Refusal),
}

/// A refusal as a door writes it (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    code: Code,
    detail: String,
}

/// A verb as it is sent.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its JSON, and behind that the bytes of its input.
    pub body: Bytes,
    /// Where the JSON ends, if an input follows.
    pub json: Option<usize>,
}

/// What was heard of another scheduler.
#[derive(Debug)]
pub enum Heard {
    /// Its answer, as JSON.
    Answer(Vec<u8>),
    /// Why not.
    Refusal(Refusal),
    /// Nothing; `sent`: it may have got the question.
    Lost { sent: bool },
}

/// Connections to the other schedulers, of one thread of a door; a clone shares them.
#[derive(Debug, Clone)]
pub struct Peers {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Whether schedulers are spoken to in no other way than encrypted.
    encrypted: bool,
}

/// How other schedulers are reached: they must show whom `trusted` trusts, whatever their address.
pub fn connector(trusted: &ClientConfig) -> HttpsConnector<HttpConnector> {
    let connector = HttpsConnectorBuilder::new().with_tls_config(trusted.clone()).https_or_http();
    let connector = match ServerName::try_from(identity::SCHEDULER) {
        Ok(name) => connector.with_server_name_resolver(FixedServerNameResolver::new(name)),
        Err(_) => connector,
    };
    let mut plain = HttpConnector::new();
    plain.set_nodelay(true);
    plain.enforce_http(false);
    plain.set_connect_timeout(Some(CONNECT));
    connector.enable_http1().wrap_connector(plain)
}

impl Peers {
    /// None yet. `encrypted`: they are spoken to in no other way.
    pub fn new(trusted: &ClientConfig, encrypted: bool) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE);
        Self { client: builder.build(connector(trusted)), encrypted }
    }

    /// Asks one of them.
    pub async fn ask(&self, peer: &Peer, verb: &str, Question { body, json }: Question, who: &Asker) -> Heard {
        if self.encrypted && !peer.rest.starts_with("https://") {
            return Heard::Refusal(super::unavailable(format!(
                "the scheduler at {} that must be asked does not encrypt REST, and this one does: set rest_tls on all",
                peer.rest
            )));
        }
        let mut request = hyper::Request::post(format!("{}{PATH}{verb}", peer.rest))
            .header(FORWARDED, who.hops + 1)
            .header(CONTENT_TYPE, "application/json");
        if let Some(json) = json {
            request = request.header(VERB_LENGTH, json);
        }
        if let Some(token) = &who.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let Ok(request) = request.body(Full::new(body)) else { return Heard::Lost { sent: false } };
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    peer = peer.rest,
                    "a scheduler did not answer"
                );
                return Heard::Lost { sent: !error.is_connect() };
            }
        };
        let status = response.status();
        let Ok(whole) = Limited::new(response.into_body(), ANSWER_MAX).collect().await else {
            return Heard::Lost { sent: true };
        };
        let whole = whole.to_bytes();
        match serde_json::from_slice::<Said<Box<RawValue>>>(&whole) {
            Ok(Said::Answer(answer)) => Heard::Answer(answer.get().into()),
            Ok(Said::Refusal(refusal)) => Heard::Refusal(refusal),
            // Its door refuses, as any REST interface does: the token is none there any more, or a limit was reached.
            Err(_) => match serde_json::from_slice::<Problem>(&whole) {
                Ok(Problem { code, detail }) if code != Code::NotFound => Heard::Refusal(Refusal::new(code, detail)),
                // A version that has no such door, or something else that listens there.
                _ => {
                    let detail = format!("the scheduler at {} answered {status}", peer.rest);
                    Heard::Refusal(super::unavailable(detail))
                }
            },
        }
    }
}

/// Reads a verb, and the input behind it.
fn read<V: Verb>(json: &[u8], behind: &Bytes) -> Result<V, Refusal> {
    let unread = |error| Refusal::new(Code::Malformed, format!("the question cannot be read: {error}"));
    let mut verb = serde_json::from_slice::<V>(json).map_err(unread)?;
    match verb.input() {
        Some(input) => *input = input.with(behind)?,
        None if !behind.is_empty() => {
            return Err(Refusal::new(Code::Malformed, "the question brings bytes that it has no place for"));
        }
        None => {}
    }
    Ok(verb)
}

async fn one<V: Verb>(route: &Route, who: &Asker, json: &[u8], behind: &Bytes) -> Vec<u8>
where
    Api: Run<V>,
{
    // Who may not ask it learns nothing of how it is asked.
    let asked =
        read::<V>(json, behind).map_err(|error| authorize(V::ROLE, Scope::List, &who.subject).err().unwrap_or(error));
    let said = match asked {
        Ok(verb) => route.ask(who, verb).await.map_or_else(Said::Refusal, Said::Answer),
        Err(refusal) => Said::Refusal(refusal),
    };
    serde_json::to_vec(&said).unwrap_or_default()
}

macro_rules! answering {
    ($v:ident;
        $($one:ident::$verb:ident => $role:ident, $scope:ident $(($of:expr))?, $at:ident $(($place:expr))?, $repeat:ident -> $answer:ty;)*
        ;
        $($in:ident::$brings:ident => $in_role:ident, $in_scope:ident $(($in_of:expr))?, $in_at:ident $(($in_place:expr))?, $in_repeat:ident -> $in_answer:ty;)*
        ;
        $($all:ident::$gathers:ident => $all_role:ident, $all_scope:ident $(($all_of:expr))?, All, $all_repeat:ident -> $page:ty;)*
    ) => {
        /// Answers what another scheduler, or anybody else with a token, asks by a verb's name.
        pub async fn answer(route: &Route, who: &Asker, name: &str, json: &[u8], behind: &Bytes) -> Vec<u8> {
            match name {
                $(<capstan_verb::$one::$verb as Verb>::NAME => one::<capstan_verb::$one::$verb>(route, who, json, behind).await,)*
                $(<capstan_verb::$in::$brings as Verb>::NAME => one::<capstan_verb::$in::$brings>(route, who, json, behind).await,)*
                $(<capstan_verb::$all::$gathers as Verb>::NAME => one::<capstan_verb::$all::$gathers>(route, who, json, behind).await,)*
                _ => {
                    let refusal = super::unavailable("this scheduler does not know the verb: it has another version");
                    serde_json::to_vec(&Said::<()>::Refusal(refusal)).unwrap_or_default()
                }
            }
        }
    };
}
all_verbs!(answering);
