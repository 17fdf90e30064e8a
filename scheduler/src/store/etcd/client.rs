//! The connection to etcd, for threads that block: requests run on a runtime of their own, so that no busy actor starves them.

use super::EtcdConfig;
use crate::store::StoreError;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, Identity, KeyValue, TlsOptions, Txn,
    TxnOp,
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::OnceCell,
};
use tonic::{Code, Status};

/// The largest answer: a page of log entries.
const ANSWER_BYTES: usize = 256 << 20;
/// How often a silent connection is probed; etcd closes those that ask more often than every 5 s.
const PROBE: Duration = Duration::from_secs(6);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_millis(1_000);

/// Why a request failed.
#[derive(Debug)]
pub enum Trouble {
    /// It may have been done, or not: send the same again.
    Unknown(String),
    /// etcd has no room: nothing was done.
    Full,
    /// It is refused for what it is.
    Refused(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(why) | Self::Refused(why) => f.write_str(why),
            Self::Full => f.write_str("etcd's database has no room (NOSPACE)"),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match &error {
            Error::GRpcStatus(status) if status.message().contains("database space exceeded") => Self::Full,
            Error::GRpcStatus(status) if is_about_the_user(status) => {
                Self::Unknown(format!("etcd refuses this user (etcd.user, etcd.password): {}", status.message()))
            }
            Error::GRpcStatus(status) => match status.code() {
                Code::InvalidArgument | Code::OutOfRange => {
                    Self::Refused(format!("etcd refuses it: {}", status.message()))
                }
                Code::ResourceExhausted if status.message().contains("too large") => {
                    Self::Refused(format!("etcd refuses it: {}", status.message()))
                }
                _ => Self::Unknown(format!("etcd does not answer: {}", whole(status.message().into(), status))),
            },
            other => Self::Unknown(format!("etcd cannot be reached: {}", whole(other.to_string(), other))),
        }
    }
}

/// Whether etcd does not know us, or does not let us: nothing was done, nothing is wrong with what was asked, and whoever runs etcd
/// has to let us in again. A wrong password has the code of a wrong argument.
fn is_about_the_user(status: &Status) -> bool {
    let told = ["authentication failed", "authentication is not enabled", "invalid auth token", "user name is empty"];
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
        || told.iter().any(|text| status.message().contains(text))
}

/// What an error says, and its last reason where that says more.
fn whole(text: String, error: &dyn std::error::Error) -> String {
    let mut reason = error.source();
    while let Some(deeper) = reason.and_then(std::error::Error::source) {
        reason = Some(deeper);
    }
    match reason.map(ToString::to_string).filter(|reason| !text.contains(reason.as_str())) {
        Some(reason) => format!("{text}: {reason}"),
        None => text,
    }
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Full => Self::Full,
            Trouble::Unknown(why) => Self::Silent(std::io::Error::other(why)),
            Trouble::Refused(why) => Self::Read(std::io::Error::other(why)),
        }
    }
}

/// The members of an etcd cluster. One is asked until it does not answer; then the next. (A balanced channel would send its
/// share of all requests to a member that hangs.)
pub struct Members {
    all: Vec<(String, OnceCell<Client>)>,
    options: ConnectOptions,
}

impl Members {
    /// How many there are.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The client of a member, connected when it is first asked for.
    pub async fn client(&self, turn: usize) -> Result<Client, Error> {
        let (endpoint, cell) = &self.all[turn % self.all.len()];
        let connect = || Client::connect([endpoint], Some(self.options.clone()));
        cell.get_or_try_init(connect).await.cloned()
    }
}

/// A connection to an etcd cluster, and the prefix under which everything lies.
pub struct Etcd {
    runtime: Option<Runtime>,
    members: Arc<Members>,
    /// Whose turn it is.
    turn: Arc<AtomicUsize>,
    prefix: String,
    request: Duration,
    /// Whether the last request was answered.
    answers: AtomicBool,
    /// Whether there is room for new work.
    room: AtomicBool,
}

impl Etcd {
    /// Says how to connect; an etcd that is not there is met by the first request.
    pub fn connect(config: &EtcdConfig) -> Result<Self, StoreError> {
        let failed = |what: String| StoreError::Read(std::io::Error::other(what));
        config.check().map_err(failed)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("etcd").enable_all().build();
        let runtime = runtime.map_err(StoreError::Read)?;
        let options = options(config).map_err(|e| failed(e.to_string()))?;
        let all = config.endpoints.iter().map(|endpoint| (endpoint.clone(), OnceCell::new())).collect();
        Ok(Self {
            runtime: Some(runtime),
            members: Arc::new(Members { all, options }),
            turn: Arc::default(),
            prefix: config.prefix.clone(),
            request: Duration::from_millis(config.request_ms),
            answers: AtomicBool::new(true),
            room: AtomicBool::new(true),
        })
    }

    /// The full name of a key.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Its members, for streams.
    pub fn members(&self) -> Arc<Members> {
        self.members.clone()
    }

    /// Whether the last request was answered.
    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Acquire)
    }

    /// Whether there is room for new work.
    pub fn has_room(&self) -> bool {
        self.room.load(Ordering::Acquire)
    }

    /// Says whether there is.
    pub fn set_room(&self, room: bool) {
        if self.room.swap(room, Ordering::AcqRel) && !room {
            tracing::error!(
                "etcd's database is nearly full: new work is refused until there is room; compact and defragment it"
            );
        }
    }

    /// One request. It blocks the thread, also one of another runtime, for as long as a request may take.
    pub fn run<T, F>(&self, request: impl FnOnce(Client) -> F + Send + 'static) -> Result<T, Trouble>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let Some(runtime) = &self.runtime else { return Err(Trouble::Unknown("etcd is not connected".into())) };
        let (tell, told) = flume::bounded(1);
        let (most, members) = (self.request, self.members.clone());
        let turn = self.turn.load(Ordering::Acquire);
        runtime.spawn(async move {
            let asked = async { request(members.client(turn).await?).await };
            let done = tokio::time::timeout(most, asked).await;
            // Whoever asked waits.
            let _ = tell.send_async(done).await;
        });
        let answer = match told.recv() {
            Ok(Ok(answer)) => answer.map_err(Trouble::from),
            _ => Err(Trouble::Unknown(format!("etcd did not answer within {} ms", most.as_millis()))),
        };
        let silent = matches!(answer, Err(Trouble::Unknown(_)));
        if silent {
            // One step, however many have waited for this member.
            let _ = self.turn.compare_exchange(turn, turn + 1, Ordering::AcqRel, Ordering::Acquire);
        }
        self.answers.store(!silent, Ordering::Release);
        answer
    }

    /// A transaction.
    pub fn txn(&self, txn: Txn) -> Result<etcd_client::TxnResponse, Trouble> {
        self.run(async move |mut client| client.txn(txn).await)
    }

    /// Counts a key up, and answers a number that nobody else gets.
    pub fn next(&self, name: &str) -> Result<u64, Trouble> {
        let key = self.key(name);
        for _ in 0..100 {
            let found = self.get(name, None)?;
            let number: u64 = found.first().and_then(|kv| kv.value_str().ok()?.parse().ok()).unwrap_or(0);
            let same = found.first().map_or(0, KeyValue::mod_revision);
            let same = Compare::mod_revision(key.clone(), CompareOp::Equal, same);
            let count = TxnOp::put(key.clone(), (number + 1).to_string(), None);
            if self.txn(Txn::new().when([same]).and_then([count]))?.succeeded() {
                return Ok(number + 1);
            }
        }
        Err(Trouble::Unknown("too many schedulers start at once".into()))
    }

    /// Keys and values.
    pub fn get(&self, key: &str, options: Option<GetOptions>) -> Result<Vec<KeyValue>, Trouble> {
        let key = self.key(key);
        self.run(async move |client| {
            let mut kv = client.kv_client().max_decoding_message_size(ANSWER_BYTES);
            kv.get(key, options).await.map(|mut answer| answer.take_kvs())
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from within another runtime, where waiting is forbidden.
            runtime.shutdown_background();
        }
    }
}

fn options(config: &EtcdConfig) -> anyhow::Result<ConnectOptions> {
    let mut options = ConnectOptions::new().with_connect_timeout(CONNECT).with_keep_alive(PROBE, CONNECT);
    if !config.user.is_empty() {
        options = options.with_user(&config.user, &config.password).with_auto_token_refresh(true);
    }
    let some = |path: &Path| (!path.as_os_str().is_empty()).then(|| read(path)).transpose();
    let (authority, ours) = (some(&config.ca_file)?, some(&config.cert_file)?);
    if config.endpoints.iter().any(|e| e.starts_with("https://")) || authority.is_some() || ours.is_some() {
        let mut tls = TlsOptions::new();
        if let Some(pem) = authority {
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        if let Some(pem) = ours {
            tls = tls.identity(Identity::from_pem(pem, read(&config.key_file)?));
        }
        options = options.with_tls(tls);
    }
    Ok(options)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| anyhow::anyhow!("{} cannot be read: {e}", path.display()))
}
