//! Whether who asks may ask this. What they may not see does not exist for them.

use capstan_common::refusal::{Code, Refusal};
use capstan_verb::{
    Scope,
    access::{Denied, Object, Role, Subject},
};

/// Refuses who may not. Of a record's own namespace nothing is known yet: its owner compares that.
///
/// # Errors
/// Not found, of another's namespace; forbidden, by role, or by a token of some namespaces for what concerns all.
pub fn authorize(needed: Role, scope: Scope<'_>, subject: &Subject) -> Result<(), Refusal> {
    let object = match scope {
        Scope::In(namespace) => Object::In(namespace),
        Scope::OfRecord | Scope::List => Object::List,
        Scope::Cluster => Object::Cluster,
    };
    subject.authorize(needed, object).map_err(|denied| match (denied, scope) {
        (Denied::Role, _) => {
            let detail = format!("the token's role is {}, this needs {}", subject.role.name(), needed.name());
            Refusal::new(Code::Forbidden, detail)
        }
        (Denied::Hidden, Scope::In(namespace)) => {
            let detail = format!("namespace `{namespace}` is not this token's{}", holds_in(subject));
            Refusal::new(Code::NotFound, detail)
        }
        _ => {
            let detail = "the token holds in some namespaces, this concerns all: use a token of all";
            Refusal::new(Code::Forbidden, detail)
        }
    })
}

/// Where a token holds, in words.
fn holds_in(subject: &Subject) -> String {
    match subject.namespaces.iter().flatten().next() {
        Some(first) if subject.namespaces.as_ref().is_some_and(|all| all.len() == 1) => {
            format!(": it holds in `{first}` (capstan -n {first})")
        }
        Some(first) => format!(": it holds in `{first}` and others (capstan -n {first})"),
        None => String::new(),
    }
}
