//! The cores in virtual time.
