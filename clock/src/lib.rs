//! The one clock of a process: it begins with the machine's time, moves on with the clock that also counts while the machine
//! sleeps, and is led back to the machine's time slowly where the two differ. So it never runs backwards and never jumps,
//! whatever somebody sets the machine's time to. Only shells use it; cores get their time as an argument.

use capstan_common::time::Time;
use std::{
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// How often the clock is held against the machine's time.
const LOOK_US: u64 = 1_000_000;
/// How much it is led in that time, at most: a thousandth.
const SLEW_US: i64 = 1_000;

static CLOCK: OnceLock<Clock> = OnceLock::new();

/// A clock over two others.
struct Clock {
    /// What is added to the machine's time since its start, in microseconds.
    offset: AtomicI64,
    /// When it was last led, by the machine's time since its start.
    led: AtomicU64,
}

impl Clock {
    fn at(boot_us: u64, wall_us: u64) -> Self {
        Self { offset: AtomicI64::new(difference(wall_us, boot_us)), led: AtomicU64::new(boot_us) }
    }

    /// Its time; `wall_us` is asked for now and then.
    fn now(&self, boot_us: u64, wall_us: impl FnOnce() -> u64) -> u64 {
        let led = self.led.load(Ordering::Relaxed);
        if boot_us >= led + LOOK_US
            && self.led.compare_exchange(led, boot_us, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let offset = self.offset.load(Ordering::Relaxed);
            let off = difference(wall_us(), boot_us) - offset;
            self.offset.store(offset + off.clamp(-SLEW_US, SLEW_US), Ordering::Relaxed);
        }
        boot_us.saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }
}

fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or_default()
}

fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

fn boot_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// Now, in microseconds since 1970.
pub fn now() -> Time {
    let boot = boot_us();
    Time(CLOCK.get_or_init(|| Clock::at(boot, wall_us())).now(boot, wall_us))
}

/// Milliseconds since the machine's start, the time that it was suspended included: for what runs out elsewhere meanwhile.
pub fn boot_ms() -> u64 {
    boot_us() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_runs_backwards_and_never_jumps_whatever_the_machines_time_does() {
        let (start, hour) = (1_700_000_000_000_000u64, 3_600_000_000u64);
        for stepped in [start + 10_000 * hour, start - 10_000 * hour, 0, start + hour] {
            let clock = Clock::at(5_000_000, start);
            let mut before = start;
            for second in 1..=3_600u64 {
                let now = clock.now(5_000_000 + second * 1_000_000, || stepped + second * 1_000_000);
                let moved = now - before;
                assert!((998_000..=1_002_000).contains(&moved), "{moved}");
                before = now;
            }
        }
    }

    #[test]
    fn a_small_difference_is_made_up_for() {
        let clock = Clock::at(0, 1_000_000_000);
        let wall = |second: u64| 1_000_000_000 + second * 1_000_000 + 50_000;
        let last = (1..=60).map(|second| (second, clock.now(second * 1_000_000, || wall(second)))).last().unwrap();
        assert_eq!(last.1, wall(60));
    }

    #[test]
    fn time_asleep_counts() {
        let clock = Clock::at(0, 1_000_000_000);
        assert!(
            clock.now(8 * 3_600_000_000, || 1_000_000_000 + 8 * 3_600_000_000) >= 1_000_000_000 + 8 * 3_600_000_000
        );
    }
}
