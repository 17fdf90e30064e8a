//! API tokens: told once, kept as hashes, looked up by them.

use crate::{
    clock,
    store::{
        Change, layout,
        stored::{self, stored},
    },
};
use capstan_common::time::Time;
use capstan_verb::access::Subject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id, for revoking it.
    pub id: Arc<str>,
    /// What people call it.
    pub name: String,
    /// Who brings it.
    pub subject: Subject,
    /// SHA-256 of it: it has 244 random bits, so that no slow hash is needed.
    hash: [u8; 32],
    /// When it was made.
    pub created: Time,
}

stored! {
    Token, "a token", [None, Some(["default".into()].into())].into_iter().zip([capstan_verb::access::Role::Read, capstan_verb::access::Role::Invoke]).map(|(namespaces, role)| Token {
        id: "tk-1".into(), name: "ci".into(), subject: Subject { role, namespaces }, hash: [8; 32], created: Time(6),
    }).collect();
}

/// Hash of a token.
fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// All tokens, by their hashes.
#[derive(Debug, Default)]
pub struct Tokens(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    readable: BTreeMap<[u8; 32], Token>,
    /// Stored ones that this version cannot read. They open nothing, and are tokens all the same: a door is not open to
    /// everybody because of them.
    unreadable: usize,
}

impl Tokens {
    /// Makes one: what it is, what is kept of it, and how that is stored.
    pub fn mint(name: String, subject: Subject) -> (String, Token, Change) {
        let random = || uuid::Uuid::new_v4().simple().to_string();
        let (text, id) = (format!("cap_{}{}", random(), random()), format!("tk-{}", &random()[..12]));
        let token = Token { id: id.as_str().into(), name, subject, hash: hash(&text), created: clock::now() };
        let change = Change::Put(layout::token(&id), stored::encode(&token));
        (text, token, change)
    }

    /// Whose token this is. Looked up by its hash: how long that takes tells nothing of other tokens.
    pub fn find(&self, text: &str) -> Option<Token> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).readable.get(&hash(text)).cloned()
    }

    /// Whether there is none: then only the configuration's tokens open anything.
    pub fn is_empty(&self) -> bool {
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tokens.readable.is_empty() && tokens.unreadable == 0
    }

    /// All, by name.
    pub fn all(&self) -> Vec<Token> {
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Token> = tokens.readable.values().cloned().collect();
        all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        all
    }

    /// Opens doors from now on.
    pub fn add(&self, token: Token) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).readable.insert(token.hash, token);
    }

    /// Opens none any more. Whether there was one.
    pub fn revoke(&self, id: &str) -> bool {
        let mut tokens = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = tokens.readable.len();
        tokens.readable.retain(|_, token| &*token.id != id);
        tokens.readable.len() < before
    }

    /// Exactly these are stored. Answers how many cannot be read, of a newer version perhaps: those open nothing.
    pub fn hold(&self, stored: impl IntoIterator<Item = Vec<u8>>) -> usize {
        let mut table = Table::default();
        for value in stored {
            match stored::decode::<Token>(&value) {
                Ok(token) => drop(table.readable.insert(token.hash, token)),
                Err(error) => {
                    tracing::error!(%error, "a stored token cannot be read: it opens nothing");
                    table.unreadable += 1;
                }
            }
        }
        let unreadable = table.unreadable;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = table;
        unreadable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_itself_and_never_stored_as_it_is() {
        let tokens = Tokens::default();
        let (text, token, change) = Tokens::mint("ci".into(), Subject::admin());
        assert!(text.len() > 60);
        let Change::Put(_, value) = change else { panic!("it is stored") };
        assert!(!value.windows(16).any(|bytes| text.as_bytes().windows(16).any(|part| part == bytes)));
        assert_eq!(tokens.hold([value.to_vec(), b"not a token".to_vec()]), 1);
        assert_eq!(tokens.find(&text).as_ref(), Some(&token));
        assert_eq!(tokens.find(&text[..text.len() - 1]), None);
        assert!(tokens.revoke(&token.id) && !tokens.revoke(&token.id));
        assert_eq!(tokens.find(&text), None);
        assert!(!tokens.is_empty(), "one that cannot be read is one all the same");
        assert!(tokens.hold([]) == 0 && tokens.is_empty());
    }
}
