//! The worker's decisions, pure: what this machine holds, and what it can still hold.

pub mod node;
