//! What clients can ask: verbs, each a typed request with a typed answer.
//!
//! Doors make them of what they parse, the route authorises them and finds who answers, owners run them, and schedulers ask each
//! other with them. This crate defines and pages; it knows no HTTP, no actors and no store. Who may ask what is said in one place,
//! [`table`].

pub mod access;
pub mod call;
pub mod cluster;
pub mod container;
pub mod cursor;
pub mod function;
pub mod log;
pub mod model;
pub mod namespace;
pub mod payload;
pub mod secret;
mod table;
pub mod token;

pub use table::{RIGHTS, Rights};

use access::Role;
use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

/// What a client asks.
pub trait Verb: Clone + Serialize + DeserializeOwned + Send + 'static {
    /// What it is answered.
    type Answer: Serialize + DeserializeOwned + ToSchema + Send + 'static;
    /// Its name, among all verbs.
    const NAME: &'static str;
    /// The role that it needs.
    const ROLE: Role;
    /// Whether it may be asked once more when its answer was lost.
    const REPEAT: Repeat;

    /// Whose rights count.
    fn scope(&self) -> Scope<'_>;

    /// Who answers.
    fn at(&self) -> At;

    /// The input that it brings, if it brings one: its bytes travel as they are behind it.
    fn input(&mut self) -> Option<&mut payload::Input> {
        None
    }

    /// One answer of those of several schedulers, ours first.
    fn page(&self, answers: Vec<Self::Answer>) -> Option<Self::Answer> {
        answers.into_iter().next()
    }
}

/// It was done, and there is nothing more to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
pub struct Done {}

/// Whose rights count for a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Those in this namespace.
    In(&'a str),
    /// Those in the namespace of the record that it names: its owner compares them.
    OfRecord,
    /// Everybody's: each sees what is of its own namespaces.
    List,
    /// Those of the whole cluster.
    Cluster,
}

/// Who answers a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The scheduler that owns this place.
    Owner(u16),
    /// The one that knows what it names; which that is nothing tells.
    Whoever,
    /// All, each for what it owns.
    All,
    /// The one that is asked.
    Here,
}

/// What happens when the answer to a verb was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It is asked again: it changes nothing, or the same twice is the same as once.
    Safe,
    /// Whoever asked is told that nobody knows what became of it.
    Once,
}
