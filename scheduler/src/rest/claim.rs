//! A function's token opens what it says while its container lives: whether it does is asked of the scheduler that owns the function.

use super::web::{Proxy, pass::nothing};
use crate::{
    api::{Api, owner::PATIENCE, tokens::Standing},
    cluster::Peer,
    function_token::Claim,
    route::{FORWARDED, HOPS, unavailable},
};
use capstan_common::{id::ContainerId, refusal::Refusal};
use hyper::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long an owner's answer is believed: so much longer may a token open something than its container lives.
const BELIEVED: Duration = Duration::from_secs(1);
/// Answers that are kept.
const KEPT: usize = 1 << 12;

/// What owners have said lately of containers.
#[derive(Default)]
pub struct Heard(Mutex<BTreeMap<ContainerId, (Instant, bool)>>);

impl Heard {
    fn of(&self, container: ContainerId) -> Option<bool> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&container).filter(|(at, _)| at.elapsed() < BELIEVED).map(|(_, lives)| *lives)
    }

    fn keep(&self, container: ContainerId, lives: bool) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() >= KEPT {
            // Most are old by now; what is not is asked again.
            heard.clear();
        }
        heard.insert(container, (Instant::now(), lives));
    }
}

/// Whether a token's container lives. `hops`: how often the request was passed on; a question of ours is not passed on again.
///
/// # Errors
/// Nobody can say that now.
pub async fn lives(
    (api, proxy, heard): (&Api, &Proxy, &Heard),
    (claim, token): (&Claim, &str),
    hops: u32,
) -> Result<bool, Refusal> {
    if let Some(known) = heard.of(claim.container) {
        return Ok(known);
    }
    let peer = match api.standing(claim).await {
        Standing::Lives => return Ok(true),
        Standing::Ended => return Ok(false),
        Standing::Elsewhere(peer) if hops < HOPS => peer,
        Standing::Elsewhere(_) | Standing::Unknown => {
            return Err(unavailable(
                "whether this token's container still lives is not known yet; try again in a moment",
            ));
        }
    };
    let lives = ask(proxy, &peer, claim, token).await.ok_or_else(|| {
        unavailable(format!(
            "the scheduler at {} must say whether this token's container still lives, and does not answer; try again in a moment",
            peer.rest
        ))
    })?;
    heard.keep(claim.container, lives);
    Ok(lives)
}

/// Asks another scheduler by using the token there.
async fn ask(proxy: &Proxy, peer: &Peer, claim: &Claim, token: &str) -> Option<bool> {
    if !proxy.may_tell(&peer.rest) {
        return None;
    }
    let namespace = claim.subject.namespaces.as_ref()?.first()?;
    let namespace = utf8_percent_encode(namespace, NON_ALPHANUMERIC);
    let request = hyper::Request::get(format!("{}/v1/namespaces/{namespace}/functions?limit=1", peer.rest))
        .header("authorization", format!("Bearer {token}"))
        .header(FORWARDED, HOPS);
    let asking = proxy.client.request(request.body(nothing()).ok()?);
    let answer = tokio::time::timeout(PATIENCE / 5, asking).await.ok()?.ok()?;
    match answer.status() {
        StatusCode::OK => Some(true),
        StatusCode::UNAUTHORIZED => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_bounded_and_the_last_answers_stay() {
        let heard = Heard::default();
        let last = 2 * KEPT as u64 + 1;
        for n in 0..=last {
            heard.keep(ContainerId(n), n % 2 == 0);
        }
        assert!(heard.0.lock().unwrap().len() <= KEPT);
        assert_eq!((heard.of(ContainerId(last - 1)), heard.of(ContainerId(last))), (Some(true), Some(false)));
        assert_eq!(heard.of(ContainerId(u64::MAX)), None);
    }
}
