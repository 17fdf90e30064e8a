//! What a client is told of a store that failed.

use super::StoreError;
use capstan_common::refusal::{Code, Refusal};

/// There is no room.
pub fn store_full() -> Refusal {
    Refusal {
        retry_after_s: Some(5),
        ..Refusal::new(Code::StoreFull, "the store is full; nothing was accepted, free some space and try again")
    }
}

/// What a client is told of a store that failed.
pub fn store_refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Full => store_full(),
        StoreError::Lost => {
            let detail = "another scheduler has taken over; try again";
            Refusal { retry_after_s: Some(1), ..Refusal::new(Code::Unavailable, detail) }
        }
        StoreError::Silent(_) => {
            let detail = "the store does not answer; try again in a moment";
            Refusal { retry_after_s: Some(1), ..Refusal::new(Code::Unavailable, detail) }
        }
        error => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
            Refusal::new(Code::Internal, error.to_string())
        }
    }
}
