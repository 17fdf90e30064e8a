//! Secrets by namespace and name: sets of variables that functions have in their environment. They lie with the cluster's settings,
//! sealed where a key is configured.

use crate::store::{
    Change, layout,
    stored::{self, stored},
};
use anyhow::{Context, Result, ensure};
use capstan_common::id::FunctionKey;
use data_encoding::HEXLOWER_PERMISSIVE;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

/// Variables of one secret.
pub type Values = BTreeMap<String, String>;
/// A secret's namespace and name.
type Name = (Arc<str>, Arc<str>);

/// How a secret is stored.
#[derive(Serialize, Deserialize)]
pub(crate) enum Stored {
    Plain(Values),
    /// JSON of the values, sealed for its key in the store.
    Sealed {
        nonce: [u8; NONCE_LEN],
        sealed: Vec<u8>,
    },
}

stored! {
    Stored, "a secret", vec![
        Stored::Plain([("A".to_owned(), "b".to_owned())].into()),
        Stored::Sealed { nonce: [3; NONCE_LEN], sealed: vec![4, 5] },
    ];
}

/// All of a cluster.
pub struct Secrets {
    key: Option<LessSafeKey>,
    table: RwLock<BTreeMap<Name, Arc<Values>>>,
}

impl Secrets {
    /// None yet; sealed with the key in this file, if there is one: 64 hexadecimal digits.
    ///
    /// # Errors
    /// The file cannot be read, can be read by everybody, or holds something else.
    pub fn new(key_file: &Path) -> Result<Self> {
        let key = if key_file.as_os_str().is_empty() { None } else { Some(read_key(key_file)?) };
        Ok(Self { key, table: RwLock::default() })
    }

    /// What makes a secret durable.
    ///
    /// # Errors
    /// It cannot be sealed.
    pub fn put(&self, namespace: &str, name: &str, values: &Values) -> Result<Change> {
        let at = layout::secret(namespace, name);
        let stored = match &self.key {
            None => Stored::Plain(values.clone()),
            Some(key) => {
                let mut nonce = [0; NONCE_LEN];
                nonce.copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[..NONCE_LEN]);
                let mut sealed = serde_json::to_vec(values)?;
                let sealing =
                    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&at[..]), &mut sealed);
                sealing.map_err(|_| anyhow::anyhow!("the secret cannot be sealed"))?;
                Stored::Sealed { nonce, sealed }
            }
        };
        Ok(Change::Put(at, stored::encode(&stored)))
    }

    fn open(&self, at: &[u8], stored: &[u8]) -> Result<Values> {
        match stored::decode::<Stored>(stored)? {
            Stored::Plain(values) => Ok(values),
            Stored::Sealed { nonce, mut sealed } => {
                let key = self.key.as_ref().context("it is sealed, and scheduler.secrets_key_file is not set")?;
                let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(at), &mut sealed);
                let opened = opened.map_err(|_| anyhow::anyhow!("it was sealed with another key"))?;
                Ok(serde_json::from_slice(opened)?)
            }
        }
    }

    /// Exactly these are stored.
    pub fn hold(&self, stored: impl IntoIterator<Item = (Box<[u8]>, bytes::Bytes)>) {
        let mut table = BTreeMap::new();
        for (at, value) in stored {
            let Some((namespace, name)) = layout::secret_of(&at) else { continue };
            match self.open(&at, &value) {
                Ok(values) => drop(table.insert((namespace.into(), name.into()), Arc::new(values))),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(namespace, name, error, "a stored secret cannot be read: set it once more");
                }
            }
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// Holds from now on.
    pub fn set(&self, namespace: &str, name: &str, values: Values) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.insert((namespace.into(), name.into()), Arc::new(values));
    }

    /// Holds no more.
    pub fn remove(&self, namespace: &str, name: &str) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(&(namespace.into(), name.into()));
    }

    /// Those of a namespace: names, and the names of their variables.
    pub fn of(&self, namespace: &str) -> Vec<(Arc<str>, Vec<String>)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let theirs = table.iter().filter(|((space, _), _)| &**space == namespace);
        theirs.map(|((_, name), values)| (name.clone(), values.keys().cloned().collect())).collect()
    }

    /// What a function that names these secrets has in its environment; a later one wins over an earlier one.
    pub fn environment(&self, function: &FunctionKey, names: &[String]) -> Values {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let of = |name: &String| table.get(&(function.namespace.clone(), name.as_str().into())).cloned();
        names.iter().filter_map(of).flat_map(|values| (*values).clone()).collect()
    }
}

fn read_key(file: &Path) -> Result<LessSafeKey> {
    use std::os::unix::fs::PermissionsExt;
    let shown = file.display();
    let mode = std::fs::metadata(file).with_context(|| format!("secrets_key_file {shown}"))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "secrets_key_file {shown} can be read by others than its owner: chmod 600 it");
    let text = std::fs::read_to_string(file).with_context(|| format!("secrets_key_file {shown}"))?;
    let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).unwrap_or_default();
    let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
    let key = key.map_err(|_| {
        anyhow::anyhow!(
            "secrets_key_file {shown} must hold 64 hexadecimal digits, as `openssl rand -hex 32` prints them"
        )
    })?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_sealed_for_its_place_and_another_key_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let with = |name: &str, digit: &str| {
            use std::os::unix::fs::PermissionsExt;
            let file = folder.path().join(name);
            std::fs::write(&file, digit.repeat(64)).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            Secrets::new(&file).unwrap()
        };
        let (ours, theirs, plain) = (with("a", "a"), with("b", "b"), Secrets::new(Path::new("")).unwrap());
        let values = Values::from([("PASSWORD".to_owned(), "open sesame".to_owned())]);
        let Change::Put(at, value) = ours.put("ns", "db", &values).unwrap() else { panic!("it is put") };
        assert!(!value.windows(6).any(|bytes| bytes == b"sesame"));
        let function = FunctionKey::new("ns", "f");
        let names = ["db".to_owned()];
        let has = |secrets: &Secrets, at: &[u8]| {
            secrets.hold([(at.into(), value.clone())]);
            secrets.environment(&function, &names)
        };
        assert_eq!(has(&ours, &at), values);
        assert_eq!(has(&theirs, &at), Values::new());
        assert_eq!(has(&plain, &at), Values::new());
        // Whoever may write to the store cannot give one namespace's secret to another.
        assert_eq!(has(&ours, &layout::secret("ns", "dc")), Values::new());
        assert!(Secrets::new(&folder.path().join("none")).is_err());
        std::fs::write(folder.path().join("a"), "short").unwrap();
        assert!(Secrets::new(&folder.path().join("a")).is_err());
    }
}
