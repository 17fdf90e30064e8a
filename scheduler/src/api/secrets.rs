//! Secrets: set, listed without their values, removed.

use super::Api;
use crate::{
    secrets::Values,
    store::{Change, layout, store_refusal},
};
use capstan_common::{
    function::FunctionSpec,
    id::FunctionKey,
    refusal::{Code, FieldError, Refusal},
    validate,
};
use capstan_scheduler_core::function::Function;
use capstan_verb::secret::{SecretView, SetView, UsersView};
use std::collections::BTreeSet;

/// Bytes of one secret.
const SECRET_BYTES: usize = 64 << 10;
/// Secrets of a namespace.
const SECRETS: usize = 1_000;
/// Bytes of a variable's name.
const NAME_MAX: usize = 128;

/// Whether this can be a variable's name.
fn is_variable(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && name.len() <= NAME_MAX && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A secret's name is one as functions have it; what is wrong with it is said of a secret.
fn must_be_a_name(namespace: &str, name: &str) -> Result<(), Refusal> {
    validate::function_key(namespace, "any")?;
    let wrong = |_| Refusal::field("name", "a secret's name has 1 to 128 letters, digits, `.`, `_` and `-`");
    validate::function_key(namespace, name).map(drop).map_err(wrong)
}

fn view(namespace: &str, name: &str, keys: Vec<String>) -> SecretView {
    SecretView { namespace: namespace.into(), name: name.into(), keys }
}

impl Api {
    /// Sets a secret. Whether it is new. A change holds for containers that start from now on.
    ///
    /// # Errors
    /// A name is none, it is too large, or there are too many.
    pub async fn set_secret(&self, namespace: &str, name: &str, values: Values) -> Result<SetView, Refusal> {
        must_be_a_name(namespace, name)?;
        let wrong = values.keys().filter(|name| !is_variable(name));
        let wrong = wrong.map(|name| FieldError {
            pointer: format!("/values/{}", name.replace('~', "~0").replace('/', "~1")),
            detail: "a variable's name has letters, digits and underscores, and does not begin with a digit".into(),
        });
        let wrong: Vec<FieldError> = wrong.take(16).collect();
        if !wrong.is_empty() {
            return Err(Refusal::fields(wrong));
        }
        if values.values().any(|value| value.contains('\0')) {
            return Err(Refusal::field("values", "a variable's value cannot hold a zero byte"));
        }
        let size: usize = values.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > SECRET_BYTES || values.is_empty() {
            let detail = format!("must have from 1 variable to {SECRET_BYTES} bytes together, has {size} bytes");
            return Err(Refusal::field("values", detail));
        }
        self.must_have_room_anywhere()?;
        let there = self.env.secrets.of(namespace);
        let new = !there.iter().any(|(known, _)| &**known == name);
        if new && there.len() >= SECRETS {
            return Err(Refusal::exhausted(format!("a namespace has at most {SECRETS} secrets: remove some"), 60));
        }
        let change = self.env.secrets.put(namespace, name, &values);
        let change = change.map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
        self.env.globals.write(vec![change]).await.map_err(store_refusal)?;
        let secret = view(namespace, name, values.keys().cloned().collect());
        self.env.secrets.set(namespace, name, values);
        Ok(SetView { secret, new })
    }

    /// The secrets of a namespace, without what they are.
    pub fn secrets(&self, namespace: &str) -> Vec<SecretView> {
        let all = self.env.secrets.of(namespace);
        all.into_iter().map(|(name, keys)| view(namespace, &name, keys)).collect()
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// There is none, or functions have it.
    pub async fn remove_secret(&self, namespace: &str, name: &str) -> Result<(), Refusal> {
        must_be_a_name(namespace, name)?;
        if !self.env.secrets.of(namespace).iter().any(|(known, _)| &**known == name) {
            return Err(Refusal::new(
                Code::NotFound,
                format!("secret `{name}` of namespace `{namespace}` does not exist"),
            ));
        }
        let functions = self.users_of_secret(namespace, name).await;
        if let Some(refusal) = (UsersView { functions }).in_the_way(name) {
            return Err(refusal);
        }
        let gone = Change::Delete(layout::secret(namespace, name));
        self.env.globals.write(vec![gone]).await.map_err(store_refusal)?;
        self.env.secrets.remove(namespace, name);
        Ok(())
    }

    /// The functions of this scheduler that have a secret.
    pub async fn users_of_secret(&self, namespace: &str, name: &str) -> BTreeSet<String> {
        let mut users = BTreeSet::new();
        let functions = self.env.registry.functions().into_iter().map(|(key, _)| key);
        for key in functions.filter(|key| &*key.namespace == namespace) {
            let wanted = name.to_owned();
            // Also of a revision that serves until the latest takes over: its containers may start again.
            let uses = move |core: &Function| {
                [core.deployment(), core.serving()].iter().any(|of| of.spec.secrets.contains(&wanted))
            };
            if self.ask_any(&key, uses).await.unwrap_or(false) {
                users.insert(key.name.to_string());
            }
        }
        users
    }

    /// Refuses a spec that names secrets which are not there, or that could not reach its container unread.
    pub(super) fn must_have_secrets(&self, key: &FunctionKey, spec: &FunctionSpec) -> Result<(), Refusal> {
        let known = self.env.secrets.of(&key.namespace);
        let missing = spec.secrets.iter().enumerate().filter(|(_, name)| !known.iter().any(|(k, _)| **k == ***name));
        let missing = missing.map(|(n, name)| FieldError {
            pointer: format!("/secrets/{n}"),
            detail: format!("`{name}` is not a secret of namespace `{}`: set it first", key.namespace),
        });
        let missing: Vec<FieldError> = missing.collect();
        if !missing.is_empty() {
            return Err(Refusal::fields(missing));
        }
        let plain = !self.config.link_listen.is_empty() && !self.config.link_tls;
        if plain && !spec.secrets.is_empty() {
            let detail = "secrets reach workers over encrypted links only: set scheduler.link_tls and worker.link_tls";
            return Err(Refusal::field("secrets", detail));
        }
        Ok(())
    }

    /// What other schedulers have set and removed holds here too.
    pub async fn adopt_secrets(&self) {
        if let Ok(stored) = self.env.globals.secrets().await {
            self.env.secrets.hold(stored);
        }
    }
}
