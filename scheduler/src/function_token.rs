//! The tokens that functions' programs have: signed values, of which nothing is stored. Each is good while its container lives.

use crate::{
    global::Globals,
    store::{
        layout,
        stored::{self, stored},
    },
};
use anyhow::{Context, Result};
use capstan_common::{
    function::TokenRole,
    id::ContainerId,
    order::{AUTHORITY, Start},
    time::Time,
};
use capstan_verb::access::{Role, Subject};
use data_encoding::HEXLOWER;
use ring::hmac;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

/// What every such token begins with.
const BEGIN: &str = "capf_";

/// Makes them and knows them again; all schedulers of a cluster have the same key.
pub struct FunctionTokens {
    key: hmac::Key,
    /// Where functions reach REST, and the authority that signed its certificate, as PEM, if they need that: known once it listens.
    reached: OnceLock<(String, Option<String>)>,
}

/// Begins what schedulers show each other.
const SCHEDULER: &str = "caps_";
/// How long that is good, in seconds, and how far their clocks may differ.
const GOOD_FOR_S: u64 = 60;

/// What a token says that we signed.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    /// The container whose programs have it.
    pub container: ContainerId,
    /// Its function's place: its owner knows whether the container lives.
    pub place: u16,
    /// What they may do, in their namespace.
    pub subject: Subject,
}

/// What functions' tokens are signed with, as it is stored.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Key([[u8; 16]; 2]);

stored! {
    Key, "the key of functions' tokens", vec![Key([[1; 16], [2; 16]])];
}

impl FunctionTokens {
    /// With the cluster's key, made if there is none.
    pub async fn settle(globals: &Globals) -> Result<Self> {
        let random = || uuid::Uuid::new_v4().into_bytes();
        let drawn = Key([random(), random()]);
        // Another scheduler may be faster: its key holds.
        globals.create(layout::FUNCTION_KEY, stored::encode(&drawn)).await?;
        let stored = globals.get(layout::FUNCTION_KEY).await?.context("the key of functions' tokens is gone")?;
        let Key(key) = stored::decode(&stored).context("the key of functions' tokens cannot be read")?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, key.as_flattened()), reached: OnceLock::new() })
    }

    /// From now on programs are told that REST is here, and whom to believe that.
    pub fn serve_at(&self, url: String, authority: Option<String>) {
        // A scheduler listens once.
        let _ = self.reached.set((url, authority));
    }

    /// What a container's programs find in their environment.
    pub fn environment(&self, start: &Start, role: TokenRole) -> BTreeMap<String, String> {
        let namespace = &start.function.namespace;
        let (url, authority) = self.reached.get().cloned().unzip();
        let url = url.map(|url| ("CAPSTAN_URL", url));
        let authority = authority.flatten().map(|pem| (AUTHORITY, pem));
        let token = role_of(role)
            .map(|role| ("CAPSTAN_TOKEN", self.sign(start.container, start.function.place(), role, namespace)));
        let named =
            [("CAPSTAN_NAMESPACE", namespace.to_string()), ("CAPSTAN_FUNCTION", start.function.name.to_string())];
        named
            .into_iter()
            .chain(url)
            .chain(authority)
            .chain(token)
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    fn sign(&self, container: ContainerId, place: u16, role: Role, namespace: &str) -> String {
        let said = format!("{}/{place}/{}/{namespace}", container.0, name_of(role));
        let seal = HEXLOWER.encode(hmac::sign(&self.key, said.as_bytes()).as_ref());
        format!("{BEGIN}{seal}_{said}")
    }

    /// What one scheduler shows another that it asks for itself: a door that has no tokens asks so. It is good for a moment, and for
    /// looking alone.
    pub fn sign_for_schedulers(&self, now: Time) -> String {
        let until = now.0 / 1_000_000 + GOOD_FOR_S;
        let said = format!("scheduler/{until}");
        let seal = HEXLOWER.encode(hmac::sign(&self.key, said.as_bytes()).as_ref());
        format!("{SCHEDULER}{seal}_{said}")
    }

    /// What another scheduler may ask that shows this.
    pub fn read_scheduler(&self, token: &str, now: Time) -> Option<Subject> {
        let (seal, said) = token.strip_prefix(SCHEDULER)?.split_once('_')?;
        let seal = HEXLOWER.decode(seal.as_bytes()).ok()?;
        hmac::verify(&self.key, said.as_bytes(), &seal).ok()?;
        let until: u64 = said.strip_prefix("scheduler/")?.parse().ok()?;
        let now = now.0 / 1_000_000;
        let good = now <= until + GOOD_FOR_S && until <= now + 2 * GOOD_FOR_S;
        good.then_some(Subject { role: Role::Read, namespaces: None })
    }

    /// What a token says, if we signed it. Whether its container lives is another question.
    pub fn read(&self, token: &str) -> Option<Claim> {
        let (seal, said) = token.strip_prefix(BEGIN)?.split_once('_')?;
        let seal = HEXLOWER.decode(seal.as_bytes()).ok()?;
        hmac::verify(&self.key, said.as_bytes(), &seal).ok()?;
        let mut parts = said.splitn(4, '/');
        let container = ContainerId(parts.next()?.parse().ok()?);
        let place = parts.next()?.parse().ok()?;
        let name = parts.next()?;
        let role = [Role::Read, Role::Invoke, Role::Deploy].into_iter().find(|role| name_of(*role) == name)?;
        let namespaces = Some(BTreeSet::from([Arc::from(parts.next()?)]));
        Some(Claim { container, place, subject: Subject { role, namespaces } })
    }
}

fn name_of(role: Role) -> &'static str {
    match role {
        Role::Read => "read",
        Role::Invoke => "invoke",
        Role::Deploy => "deploy",
        Role::Admin => "admin",
    }
}

fn role_of(role: TokenRole) -> Option<Role> {
    match role {
        TokenRole::None => None,
        TokenRole::Read => Some(Role::Read),
        TokenRole::Invoke => Some(Role::Invoke),
        TokenRole::Deploy => Some(Role::Deploy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_schedulers_show_each_other_is_theirs_and_good_for_a_moment() {
        let of =
            |key: u8| FunctionTokens { key: hmac::Key::new(hmac::HMAC_SHA256, &[key; 32]), reached: OnceLock::new() };
        let (ours, theirs) = (of(1), of(2));
        let at = |seconds: u64| Time(1_764_000_000_000_000 + seconds * 1_000_000);
        let token = ours.sign_for_schedulers(at(0));
        let looks = Some(Subject { role: Role::Read, namespaces: None });
        assert_eq!(ours.read_scheduler(&token, at(0)), looks);
        assert_eq!(ours.read_scheduler(&token, at(100)), looks, "clocks differ");
        assert_eq!(ours.read_scheduler(&token, at(121)), None, "it is old");
        assert_eq!(ours.read_scheduler(&ours.sign_for_schedulers(at(200)), at(0)), None, "it is of a day to come");
        assert_eq!(theirs.read_scheduler(&token, at(0)), None);
        assert_eq!(ours.read_scheduler(&token.replace("scheduler/17", "scheduler/18"), at(0)), None);
        // Neither is the other: a function's token opens no scheduler's door, and the other way round.
        assert_eq!(ours.read(&token), None);
        assert_eq!(ours.read(&token.replace(SCHEDULER, BEGIN)), None);
        let function = ours.sign(ContainerId(77), 9, Role::Invoke, "n");
        assert_eq!(ours.read_scheduler(&function.replace(BEGIN, SCHEDULER), at(0)), None);
    }

    #[test]
    fn a_token_says_what_was_signed_and_nothing_else_opens() {
        let of =
            |key: u8| FunctionTokens { key: hmac::Key::new(hmac::HMAC_SHA256, &[key; 32]), reached: OnceLock::new() };
        let (ours, theirs) = (of(1), of(2));
        let token = ours.sign(ContainerId(77), 9, Role::Invoke, "team.a_b");
        let claim = ours.read(&token).unwrap();
        assert_eq!((claim.container, claim.place), (ContainerId(77), 9));
        let namespaces = Some(BTreeSet::from([Arc::from("team.a_b")]));
        assert_eq!(claim.subject, Subject { role: Role::Invoke, namespaces });
        assert_eq!(theirs.read(&token), None);
        for (part, other) in
            [("invoke", "deploy"), ("team.a_b", "team.b_b"), ("/9/", "/8/"), ("/9/", "7/9/"), ("capf_", "capf_0")]
        {
            assert_eq!(ours.read(&token.replace(part, other)), None, "{part}");
        }
        for wrong in ["", "capf_", "capf__", "capf_zz_1/9/read/a", "cap_1", &token[..token.len() - 1]] {
            assert_eq!(ours.read(wrong), None, "{wrong}");
        }
    }
}
