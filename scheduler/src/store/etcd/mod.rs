//! The etcd engine: the same log of checksummed batches as the embedded one, each a key of its own, behind a fence.
//!
//! | key, behind the prefix | value |
//! | --- | --- |
//! | `format` | the store's format and its number of shards; made once, and raised when all schedulers know a newer one |
//! | `own/SHARD` | who owns the shard, on the owner's lease; its create revision is the fence |
//! | `epoch/SHARD` | how often the shard was taken, for numbers that no other owner mints |
//! | `log/SHARD/N` | batch N, or a part of one |
//! | `members/NAME` | a scheduler that is there, on its lease |
//! | `spaces/NAME` | what namespaces hold and lack at a scheduler, on its lease |
//! | `global/KEY` | what belongs to no function |
//!
//! See `docs/adr/0005-etcd-log.md`.

mod client;
mod format;
mod log;
mod ownership;
mod session;

pub use client::{Etcd, Trouble};
pub use format::{FORMAT, Format};
pub use log::{EtcdLog, Opened};
pub use session::Session;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EtcdConfig {
    /// Its members, like `http://10.0.0.1:2379`; `https` for TLS. Empty: the embedded store is used.
    pub endpoints: Vec<String>,
    /// What all keys begin with; another cluster on the same etcd has another one.
    pub prefix: String,
    /// How many shards functions are spread over; fixed when the store is made.
    pub shards: u16,
    /// Who logs in; empty: nobody, certificates may do.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The authority that signed etcd's certificates, as PEM; empty: that of the system.
    pub ca_file: PathBuf,
    /// Our certificate for etcd, as PEM; empty: none.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// How long a scheduler may be silent before its shards are taken, in seconds. etcd gives at least 1.5 election time-outs:
    /// 2 with its defaults.
    pub lease_s: u32,
    /// How long one request may take before it is sent again, in milliseconds.
    pub request_ms: u64,
    /// etcd's `--quota-backend-bytes`: new work is refused when three quarters of it are full. 0: etcd's own default of 2 GiB.
    pub quota_bytes: u64,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/capstan/".into(),
            shards: 16,
            user: String::new(),
            password: String::new(),
            ca_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            lease_s: 2,
            request_ms: 2_000,
            quota_bytes: 0,
        }
    }
}

impl EtcdConfig {
    /// Says what must not be started like this.
    pub fn check(&self) -> Result<(), String> {
        let wrong = self.endpoints.iter().find(|e| !e.starts_with("http://") && !e.starts_with("https://"));
        if let Some(wrong) = wrong {
            return Err(format!("etcd.endpoints must be like http://127.0.0.1:2379, one is `{wrong}`"));
        }
        if !self.prefix.starts_with('/') || !self.prefix.ends_with('/') || self.prefix.len() < 3 {
            return Err(format!("etcd.prefix must begin and end with a slash, like /capstan/, is `{}`", self.prefix));
        }
        if !(1..=1024).contains(&self.shards) {
            return Err(format!("etcd.shards must be from 1 to 1024, is {}", self.shards));
        }
        if self.lease_s == 0 || self.request_ms == 0 {
            return Err("etcd.lease_s and etcd.request_ms must be at least 1".into());
        }
        if self.cert_file.as_os_str().is_empty() != self.key_file.as_os_str().is_empty() {
            return Err("etcd.cert_file and etcd.key_file go together: set both or none".into());
        }
        Ok(())
    }
}
