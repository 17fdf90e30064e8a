//! Secrets: sets of variables that functions have in their environment.

use capstan_common::refusal::{Code, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// The secrets of a namespace, without what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Which namespace.
    pub namespace: String,
}

/// Sets a secret; a change holds for containers that start from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// In which namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its variables.
    pub values: BTreeMap<String, String>,
}

/// Removes a secret that no function has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remove {
    /// In which namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The functions that have a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// In which namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Secrets by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Secrets)]
pub struct SecretsView {
    /// All of the namespace.
    pub secrets: Vec<SecretView>,
}

/// A secret as users see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Secret)]
pub struct SecretView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Names of its variables.
    pub keys: Vec<String>,
}

/// A secret that was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = SecretSet)]
pub struct SetView {
    /// The secret.
    pub secret: SecretView,
    /// Whether it was not there before.
    pub new: bool,
}

/// Functions that have a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = SecretUsers)]
pub struct UsersView {
    /// By name.
    pub functions: BTreeSet<String>,
}

impl UsersView {
    /// Why the secret cannot be removed, if functions have it.
    pub fn in_the_way(&self, secret: &str) -> Option<Refusal> {
        let users = self.functions.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let detail = format!("secret `{secret}` is in use by {users}: deploy them without it first");
        (!self.functions.is_empty()).then(|| Refusal::new(Code::Conflict, detail))
    }
}

impl Users {
    /// Those of all schedulers.
    pub(crate) fn gather(&self, answers: Vec<UsersView>) -> Option<UsersView> {
        Some(UsersView { functions: answers.into_iter().flat_map(|answer| answer.functions).collect() })
    }
}
