//! The laws of the design, as far as tools can keep them.
