//! Workers whose links break again and again (RELIABILITY F16): what is placed there may soon have to run elsewhere, so they are
//! passed over for a while that grows, as long as a steady worker has room.

use capstan_common::time::Time;

/// Breaks that are nobody's fault.
const PARDONED: u32 = 2;
/// After so long without a break all is forgotten.
const FORGET_MS: u64 = 300_000;
/// The first time for which a worker is passed over; it doubles with each further break.
const FIRST_MS: u64 = 10_000;
/// The longest such time.
const MOST_MS: u64 = 300_000;

/// How often a worker's link broke lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steadiness {
    breaks: u32,
    last: Time,
}

impl Steadiness {
    /// The link broke.
    pub fn broke(&mut self, now: Time) {
        if now.since_ms(self.last) > FORGET_MS {
            self.breaks = 0;
        }
        self.breaks += 1;
        self.last = now;
    }

    /// Until when the worker is passed over; `None` if it is not.
    pub fn passed_over_until(&self, now: Time) -> Option<Time> {
        let further = self.breaks.checked_sub(PARDONED + 1)?;
        let ms = FIRST_MS.saturating_mul(1 << further.min(16)).min(MOST_MS);
        Some(self.last.plus_ms(ms)).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Time {
        Time(s * 1_000_000)
    }

    #[test]
    fn two_breaks_are_pardoned_and_then_the_time_doubles() {
        let mut worker = Steadiness::default();
        let begun = 10_000;
        for (at, over_s) in [(0, None), (20, None), (40, Some(10)), (60, Some(20)), (90, Some(40)), (140, Some(80))] {
            let now = seconds(begun + at);
            worker.broke(now);
            let until = worker.passed_over_until(now);
            assert_eq!(until, over_s.map(|s| now.plus_ms(s * 1000)), "after {at} s");
            assert!(until.is_none_or(|until| worker.passed_over_until(until).is_none()));
        }
        for _ in 0..100 {
            worker.broke(seconds(begun + 150));
        }
        assert_eq!(worker.passed_over_until(seconds(begun + 150)), Some(seconds(begun + 450)));
    }

    #[test]
    fn a_quiet_time_makes_good() {
        let mut worker = Steadiness::default();
        for at in [0, 1, 2, 3] {
            worker.broke(seconds(1_000 + at));
        }
        worker.broke(seconds(2_000));
        assert_eq!(worker.passed_over_until(seconds(2_000)), None);
    }
}
