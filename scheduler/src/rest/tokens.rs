//! API tokens over REST.

use super::{
    body::Body,
    problem::{Answer, parse},
};
use crate::api::Api;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

/// The largest request for a token.
const WANTED_BYTES: usize = 64 << 10;

pub async fn list(api: web::Data<Api>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"tokens": api.tokens()}))
}

pub async fn make(api: web::Data<Api>, request: HttpRequest, payload: web::Payload) -> Answer {
    let bytes = Body::of(&request, payload)?.whole(WANTED_BYTES).await?;
    let made = api.make_token(parse(&bytes)?).await?;
    Ok(HttpResponse::Created().json(made))
}

pub async fn revoke(api: web::Data<Api>, path: web::Path<String>) -> Answer {
    api.revoke_token(&path).await?;
    Ok(HttpResponse::NoContent().finish())
}
