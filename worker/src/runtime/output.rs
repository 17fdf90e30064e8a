//! A container's output: forwarded as logs within a rate, and its end kept for error messages.

use bytes::Bytes;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bytes of the end that are kept.
const TAIL_BYTES: usize = 4096;
/// Bytes a second that are forwarded; the rest is counted and left out.
const RATE_BYTES: usize = 1 << 20;

/// The end of an output and the allowance to forward it.
#[derive(Debug)]
struct Inner {
    tail: Vec<u8>,
    /// Whether something before the tail is gone.
    cut: bool,
    allowance: usize,
    refilled: Instant,
    dropped: u64,
}

/// One container's output, shared by its pipes.
#[derive(Debug, Clone)]
pub struct Output(Arc<Mutex<Inner>>);

impl Default for Output {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            tail: Vec::new(),
            cut: false,
            allowance: RATE_BYTES,
            refilled: Instant::now(),
            dropped: 0,
        })))
    }
}

impl Output {
    /// Takes some output. Answers what to forward: the chunk, and how many bytes before it were left out.
    pub fn take(&self, bytes: &[u8]) -> Option<(Bytes, u64)> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = bytes.len().min(TAIL_BYTES);
        let overflow = (inner.tail.len() + keep).saturating_sub(TAIL_BYTES);
        inner.cut |= overflow > 0 || keep < bytes.len();
        inner.tail.drain(..overflow);
        inner.tail.extend_from_slice(&bytes[bytes.len() - keep..]);
        if inner.refilled.elapsed() >= Duration::from_secs(1) {
            inner.refilled = Instant::now();
            inner.allowance = RATE_BYTES;
        }
        if bytes.len() > inner.allowance {
            inner.dropped += bytes.len() as u64;
            return None;
        }
        inner.allowance -= bytes.len();
        Some((Bytes::copy_from_slice(bytes), std::mem::take(&mut inner.dropped)))
    }

    /// The end of the output as text, from the begin of a line where it has one.
    pub fn tail(&self) -> String {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = inner.tail.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let from = if inner.cut && line < inner.tail.len() { line } else { 0 };
        String::from_utf8_lossy(&inner.tail[from..]).into_owned()
    }
}
