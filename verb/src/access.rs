//! Who may do what: roles, namespaces, and the one rule that decides (RELIABILITY §4.2: deny by default).

use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc};
use utoipa::ToSchema;

/// What a token may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything.
    Read,
    /// Bring work, and cancel it.
    Invoke,
    /// Deploy, scale and remove functions, stop their containers.
    Deploy,
    /// Govern the cluster: workers, namespaces, models, tokens.
    Admin,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// What it may do.
    pub role: Role,
    /// Where; `None`: everywhere.
    pub namespaces: Option<BTreeSet<Arc<str>>>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object<'a> {
    /// Something in a namespace.
    In(&'a str),
    /// A list, of which only the subject's namespaces are shown.
    List,
    /// The cluster itself, or what tells of all namespaces.
    Cluster,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The role is too low.
    Role,
    /// For this subject the object does not exist: others' objects and absent ones look the same.
    Hidden,
    /// A subject of some namespaces asks for what concerns all.
    Scope,
}

impl Subject {
    /// Whoever may do everything.
    pub fn admin() -> Self {
        Self { role: Role::Admin, namespaces: None }
    }

    /// Whether a namespace is among the subject's.
    pub fn sees(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|allowed| allowed.contains(namespace))
    }

    /// Whether the subject may do what needs this role to the object.
    pub fn authorize(&self, needed: Role, object: Object<'_>) -> Result<(), Denied> {
        match object {
            Object::In(namespace) if !self.sees(namespace) => return Err(Denied::Hidden),
            Object::Cluster if self.namespaces.is_some() => return Err(Denied::Scope),
            Object::In(_) | Object::List | Object::Cluster => {}
        }
        if self.role >= needed { Ok(()) } else { Err(Denied::Role) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_in_every_place_may_what_it_should_and_no_more() {
        // RELIABILITY §4.3 API1 API5
        let roles = [Role::Read, Role::Invoke, Role::Deploy, Role::Admin];
        let some = Some(BTreeSet::from([Arc::from("mine")]));
        for (held, role) in roles.into_iter().enumerate() {
            for (needed_at, needed) in roles.into_iter().enumerate() {
                let enough = if held >= needed_at { Ok(()) } else { Err(Denied::Role) };
                let everywhere = Subject { role, namespaces: None };
                let here = Subject { role, namespaces: some.clone() };
                for object in [Object::In("mine"), Object::In("theirs"), Object::List, Object::Cluster] {
                    assert_eq!(everywhere.authorize(needed, object), enough, "{role:?} {needed:?} {object:?}");
                }
                assert_eq!(here.authorize(needed, Object::In("mine")), enough);
                assert_eq!(here.authorize(needed, Object::List), enough);
                assert_eq!(here.authorize(needed, Object::In("theirs")), Err(Denied::Hidden));
                assert_eq!(here.authorize(needed, Object::Cluster), Err(Denied::Scope));
            }
        }
    }
}
