//! The scheduler's decisions, pure: plain values with one method, `step(now, event)`.
//!
//! [`function::Function`] owns one function's queue, calls, pool, leases and demand. [`autoscaler::Autoscaler`] answers
//! demand with grants. Neither knows a clock, randomness, I/O or threads: what they decide can be replayed from their events.

/// Whether a planted fault is at work here; never without the feature `mutants`.
macro_rules! mutated {
    ($chosen:expr, $name:ident) => {{
        #[cfg(feature = "mutants")]
        {
            $chosen == $crate::mutant::$name
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }};
}

pub mod autoscaler;
pub mod decision;
pub mod effect;
pub mod event;
pub mod function;
pub mod limits;
#[cfg(feature = "mutants")]
pub mod mutant;
pub mod ownership;
pub mod record;
pub mod scale_to_zero;
pub mod steadiness;
