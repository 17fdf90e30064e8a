//! Verbs over REST: who asks is read of the request, the answer is written as JSON.

use super::body::Limits;
use super::{
    body::Body,
    gate::{Visitor, bearer},
    guard,
    problem::{Answer, Problem},
};
use crate::route::{self, Asker, Gathered, Owner, Route, Run, VERB_LENGTH};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use capstan_common::refusal::Code;
use capstan_verb::Verb;

/// Bytes of a verb that is asked by its name: no more than a spec or a configuration may have at its own path.
const VERB_BYTES: usize = 1 << 20;
/// Names the schedulers that did not answer: what they own is missing from the list.
const SILENT: &str = "Capstan-Silent";

/// Who asks.
pub fn asker(request: &HttpRequest) -> Asker {
    let token = bearer(request.headers()).map(Into::into);
    let Visitor { subject, token: by, .. } = Visitor::of(request);
    Asker { subject, by, token, hops: super::forward::hops(request) }
}

/// Asks a verb.
pub async fn ask<V: Verb>(route: &Route, request: &HttpRequest, verb: V) -> Result<V::Answer, Problem>
where
    Owner: Run<V>,
{
    Ok(route.ask(&asker(request), verb).await?)
}

/// Asks a verb, and shows what is answered.
pub async fn shown<V: Verb>(route: &Route, request: &HttpRequest, verb: V) -> Answer
where
    Owner: Run<V>,
{
    let who = asker(request);
    let Gathered { answer, silent } = route.gather(&who, verb).await?;
    Ok(telling(&who, silent).json(answer))
}

/// An answer to which these did not contribute. Where they are is told to those who may see the cluster.
pub fn telling(who: &Asker, silent: Vec<String>) -> actix_web::HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    match silent.len() {
        0 => {}
        count if who.subject.namespaces.is_some() => drop(response.insert_header((SILENT, format!("{count} of them")))),
        _ => drop(response.insert_header((SILENT, silent.join(", ")))),
    }
    response
}

/// Answers another scheduler.
pub async fn peer(
    route: web::Data<Route>,
    limits: web::Data<Limits>,
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
) -> Answer {
    request.extensions_mut().insert(guard::Route("/peer/{verb}"));
    let json = request.headers().get(VERB_LENGTH).map(|length| length.to_str().ok()?.parse::<usize>().ok());
    let most = match json {
        None => VERB_BYTES,
        // An input follows.
        Some(Some(json)) if json <= VERB_BYTES => json + limits.bytes,
        Some(_) => {
            return Err(Problem::new(
                Code::Malformed,
                format!("{VERB_LENGTH} must be a number of at most {VERB_BYTES}"),
            ));
        }
    };
    let body = Body::of(&request, payload)?.whole(most).await?;
    let end = json.flatten().unwrap_or(body.len());
    if end > body.len() {
        return Err(Problem::new(Code::Malformed, format!("{VERB_LENGTH} is more than there is")));
    }
    let said = route::answer(&route, &asker(&request), &path, &body[..end], &body.slice(end..)).await;
    Ok(HttpResponse::Ok().content_type("application/json").body(said))
}
