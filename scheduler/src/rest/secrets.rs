//! Secrets over REST.

use super::{
    body::Body,
    problem::{Answer, parse},
};
use crate::{api::Api, secrets::Values};
use actix_web::{HttpRequest, HttpResponse, web};
use capstan_common::validate;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The largest request: what is stored, as JSON may write it.
const BODY_BYTES: usize = 512 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    values: Values,
}

pub async fn list(api: web::Data<Api>, namespace: web::Path<String>) -> Answer {
    validate::function_key(&namespace, "any")?;
    Ok(HttpResponse::Ok().json(json!({"secrets": api.secrets(&namespace)})))
}

pub async fn set(
    api: web::Data<Api>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Answer {
    let bytes = Body::of(&request, payload)?.whole(BODY_BYTES).await?;
    let Wanted { values } = parse(&bytes)?;
    let (view, new) = api.set_secret(&path.0, &path.1, values).await?;
    let mut answer = if new { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(answer.json(view))
}

pub async fn remove(api: web::Data<Api>, path: web::Path<(String, String)>) -> Answer {
    api.remove_secret(&path.0, &path.1).await?;
    Ok(HttpResponse::NoContent().finish())
}
