//! What-if: a function's recorded or generated traffic, played through the real decision code in virtual time.
//!
//! The scheduler's `Function` core gets the same events as in production; around it stand containers that take as long as
//! the trace says, and a machine that gives every place it has. Nothing here decides.

pub mod advice;
mod machine;
pub mod plot;
pub mod trace;

pub use machine::{Machine, Scenario, replay};
pub use trace::{Arrival, Trace};

use capstan_common::time::Time;
use serde::Serialize;

/// What a replay came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Inputs that ended.
    pub inputs: u64,
    /// Inputs that never began: no container came for them.
    pub unserved: u64,
    /// Containers that were started.
    pub cold_starts: u64,
    /// Microseconds from each input's arrival to the begin of its run, sorted.
    pub waits_us: Vec<u64>,
    /// Microseconds of all containers together, from their order to their end.
    pub container_us: u64,
    /// Most containers at one time.
    pub peak: u32,
    /// Containers over time: from each point on, so many.
    pub containers: Vec<(Time, u32)>,
    /// When the first input arrived and the last thing happened.
    pub span: (Time, Time),
    /// Containers that are still there then: those of a minimum.
    pub alive: u32,
    /// Containers that were stopped with work in them: always none.
    pub cut_off: u64,
}

/// The numbers that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Inputs that ended.
    pub inputs: u64,
    /// Inputs that never began; they are in none of the waits.
    pub unserved: u64,
    /// Containers that were started.
    pub cold_starts: u64,
    /// Half of the inputs waited no longer.
    pub wait_p50_ms: f64,
    /// 95 of 100 inputs waited no longer.
    pub wait_p95_ms: f64,
    /// 99 of 100 inputs waited no longer.
    pub wait_p99_ms: f64,
    /// Seconds of all containers together.
    pub container_s: f64,
    /// Most containers at one time.
    pub peak_containers: u32,
}

/// Looks at outcomes of the same traffic until one time, the latest of their ends: a minimum goes on to cost while the containers
/// of another setting have long left.
pub fn look_equally_long(outcomes: &mut [&mut Outcome]) {
    let end = outcomes.iter().map(|outcome| outcome.span.1).max().unwrap_or_default();
    for outcome in outcomes {
        outcome.container_us += outcome.cost_until(end);
        outcome.span.1 = end;
    }
}

impl Outcome {
    /// Microseconds that the containers which are still there take from its end to a later one.
    fn cost_until(&self, end: Time) -> u64 {
        end.since_us(self.span.1) * u64::from(self.alive)
    }

    /// The wait that `part` of the inputs did not pass, in milliseconds.
    pub fn wait_ms(&self, part: f64) -> f64 {
        let last = self.waits_us.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.waits_us.get(at).map_or(0.0, |us| *us as f64 / 1000.0)
    }

    /// The numbers that are compared.
    pub fn summary(&self) -> Summary {
        Summary {
            inputs: self.inputs,
            unserved: self.unserved,
            cold_starts: self.cold_starts,
            wait_p50_ms: self.wait_ms(0.5),
            wait_p95_ms: self.wait_ms(0.95),
            wait_p99_ms: self.wait_ms(0.99),
            container_s: self.container_us as f64 / 1e6,
            peak_containers: self.peak,
        }
    }

    /// Most containers in each of `slices` equal parts of the time.
    pub fn over_time(&self, slices: usize) -> Vec<u32> {
        let (from, to) = self.span;
        let width = (to.since_us(from) / slices.max(1) as u64).max(1);
        let mut counts = vec![0; slices];
        let mut steps = self.containers.iter().peekable();
        let mut now = 0;
        for (slice, most) in counts.iter_mut().enumerate() {
            let end = from.0 + (slice as u64 + 1) * width;
            *most = now;
            while let Some((_, count)) = steps.next_if(|(at, _)| at.0 < end) {
                now = *count;
                *most = now.max(*most);
            }
        }
        counts
    }
}
