//! API tokens: made, listed, revoked.

use crate::access::Role;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc};
use utoipa::ToSchema;

/// All tokens, without what they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {}

/// Makes a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TokenRequest)]
#[serde(deny_unknown_fields)]
pub struct Make {
    /// What people call it.
    #[serde(default)]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where; nothing: everywhere.
    #[serde(default)]
    pub namespaces: Option<Vec<String>>,
}

/// Revokes a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// Its id.
    pub id: String,
}

/// Tokens by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Tokens)]
pub struct TokensView {
    /// All of them.
    pub tokens: Vec<TokenView>,
}

/// A token as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Token)]
pub struct TokenView {
    /// Its id.
    pub id: Arc<str>,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where; null: everywhere.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The token itself: told when it is made, and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}
