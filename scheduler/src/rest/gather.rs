//! Whoever knows of something is found: another scheduler is asked the same.

use super::{
    forward::{answer, asked, hops},
    web::{Proxy, pass::nothing},
};
use crate::api::{Api, owner::PATIENCE};
use actix_web::{HttpRequest, HttpResponse, web};

/// Another scheduler's answer to this request, from the one that knows what it is about; what another one refuses counts only if
/// none does better.
pub async fn elsewhere(api: &Api, request: &HttpRequest) -> Option<HttpResponse> {
    if hops(request) > 0 {
        return None;
    }
    let proxy = request.app_data::<web::Data<Proxy>>()?;
    let mut refused = None;
    for peer in api.peers() {
        let asking = proxy.client.request(asked(request, &peer, 0, false, nothing()).ok()?);
        let Ok(Ok(response)) = tokio::time::timeout(PATIENCE / 5, asking).await else { continue };
        if response.status().is_success() {
            return Some(answer(response, None, false).await);
        }
        if response.status() != hyper::StatusCode::NOT_FOUND {
            refused = Some(response);
        }
    }
    Some(answer(refused?, None, false).await)
}
