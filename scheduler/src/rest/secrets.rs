//! Secrets over REST.

use super::{
    ask::{ask, shown},
    body::Body,
    problem::{Answer, parse},
};
use crate::{
    route::{Route, unavailable},
    secrets::Values,
};
use actix_web::{HttpRequest, HttpResponse, web};
use capstan_verb::secret::{self, SetView};
use serde::{Deserialize, Serialize};

/// The largest request: what is stored, as JSON may write it.
const BODY_BYTES: usize = 512 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    values: Values,
}

pub async fn list(route: web::Data<Route>, request: HttpRequest, namespace: web::Path<String>) -> Answer {
    shown(&route, &request, secret::List { namespace: namespace.into_inner() }).await
}

pub async fn set(
    route: web::Data<Route>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Answer {
    let Wanted { values } = parse(&Body::of(&request, payload)?.whole(BODY_BYTES).await?)?;
    let (namespace, name) = path.into_inner();
    let SetView { secret, new } = ask(&route, &request, secret::Set { namespace, name, values }).await?;
    let mut answer = if new { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(answer.json(secret))
}

/// Each scheduler knows which of its own functions have a secret: all are asked, and all must answer.
pub async fn remove(route: web::Data<Route>, request: HttpRequest, path: web::Path<(String, String)>) -> Answer {
    let (namespace, name) = path.into_inner();
    let users = secret::Users { namespace: namespace.clone(), name: name.clone() };
    let users = route.gather(&super::ask::asker(&request), users).await?;
    if let Some(silent) = users.silent.first() {
        let detail = format!("the scheduler at {silent} does not say whether its functions have the secret; try again");
        return Err(unavailable(detail).into());
    }
    if let Some(refusal) = users.answer.in_the_way(&name) {
        return Err(refusal.into());
    }
    ask(&route, &request, secret::Remove { namespace, name }).await?;
    Ok(HttpResponse::NoContent().finish())
}
