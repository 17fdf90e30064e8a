//! Who answers for a function: this scheduler, or another one.

use super::Api;
use crate::{cluster::Peer, shard::Guest};
use std::time::{Duration, Instant};

/// How long a request waits for its owner, while that is being replaced.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two looks.
pub const LOOK: Duration = Duration::from_millis(20);

/// Who owns a place.
pub enum Owner {
    /// This scheduler, at least for as long as the guest lives.
    Here(Guest),
    /// Another one.
    There(Peer),
    /// Nobody, and not for a moment only.
    Nobody,
}

impl Api {
    /// Waits for whoever owns the place: between two owners nobody does.
    pub async fn owner(&self, place: u16) -> Owner {
        let begun = Instant::now();
        loop {
            match self.enter(place) {
                Ok(guest) => return Owner::Here(guest),
                Err(Some(peer)) => return Owner::There(peer),
                Err(None) if begun.elapsed() > PATIENCE => return Owner::Nobody,
                Err(None) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}
