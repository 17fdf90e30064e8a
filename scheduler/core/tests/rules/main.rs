//! Rules of one function in virtual time, step by step: containers come and go at once, and only the rule takes time.

mod instance;
mod model;
mod schedule;
mod stage;
mod store;
mod web;
