//! API tokens over REST.

use super::{
    ask::{ask, shown},
    body::Body,
    problem::{Answer, parse},
};
use crate::route::Route;
use actix_web::{HttpRequest, HttpResponse, web};
use capstan_verb::token;

/// The largest request for a token.
const WANTED_BYTES: usize = 64 << 10;

pub async fn list(route: web::Data<Route>, request: HttpRequest) -> Answer {
    shown(&route, &request, token::List {}).await
}

pub async fn make(route: web::Data<Route>, request: HttpRequest, payload: web::Payload) -> Answer {
    let wanted: token::Make = parse(&Body::of(&request, payload)?.whole(WANTED_BYTES).await?)?;
    let made = ask(&route, &request, wanted).await?;
    Ok(HttpResponse::Created().json(made))
}

pub async fn revoke(route: web::Data<Route>, request: HttpRequest, path: web::Path<String>) -> Answer {
    ask(&route, &request, token::Revoke { id: path.into_inner() }).await?;
    Ok(HttpResponse::NoContent().finish())
}
