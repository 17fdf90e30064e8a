//! Rules of one function in virtual time, step by step: containers come and go at once, and only the rule takes time.

mod batch;
mod grant;
mod instance;
mod limits;
mod model;
mod rollout;
mod schedule;
mod stage;
mod store;
mod web;
