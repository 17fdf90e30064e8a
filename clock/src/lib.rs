//! The one clock of a process: wall time at its start, moved on by the monotonic clock, so that it never runs backwards.
//! Only shells use it; cores get their time as an argument.

use capstan_common::time::Time;
use std::{
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

static START: OnceLock<(Instant, u64)> = OnceLock::new();

/// Now, in microseconds since 1970.
pub fn now() -> Time {
    let (start, wall_us) = START.get_or_init(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), wall.as_micros() as u64)
    });
    Time(wall_us + start.elapsed().as_micros() as u64)
}

/// Milliseconds since the machine's start, the time that it was suspended included: for what runs out elsewhere meanwhile.
pub fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
