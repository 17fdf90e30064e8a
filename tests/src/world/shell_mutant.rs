//! Planted faults of the shells around the cores, as the simulator plays them; numbers that the cores do not use.

/// The store writes what any owner of the past sends.
pub const FENCE_NOT_COMPARED: u8 = 100;
/// A new owner gives out work before the workers have told what they hold.
pub const SETTLES_UNTOLD: u8 = 101;
