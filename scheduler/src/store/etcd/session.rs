//! A scheduler's session: a lease that is kept while the process lives. One session is one lease is one life: after any doubt
//! a new one begins, and nothing is done again in the name of the old one (RELIABILITY §3.3).

use super::{Etcd, EtcdConfig, client::Members};
use crate::store::StoreError;
use capstan_clock::boot_ms;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

/// The pause before the stream of renewals is made anew.
const REOPEN: Duration = Duration::from_millis(50);

/// A lease that is kept.
pub struct Session {
    lease: i64,
    state: Arc<State>,
    ended: CancellationToken,
}

struct State {
    /// Until when the lease is sure to hold, by the clock that goes on while the machine sleeps.
    sure_until_ms: AtomicU64,
    lost: AtomicBool,
    lost_token: CancellationToken,
}

impl Session {
    /// Takes a lease, and keeps it from a thread of its own that nothing can starve.
    pub fn begin(etcd: &Etcd, config: &EtcdConfig) -> Result<Self, StoreError> {
        let begun = boot_ms();
        let ttl = i64::from(config.lease_s);
        let granted = etcd.run(async move |mut client| client.lease_grant(ttl, None).await)?;
        let ttl = Duration::from_secs(granted.ttl().max(1) as u64);
        let state = Arc::new(State {
            sure_until_ms: AtomicU64::new(begun + sure_ms(ttl)),
            lost: AtomicBool::new(false),
            lost_token: CancellationToken::new(),
        });
        let ended = CancellationToken::new();
        let session = Self { lease: granted.id(), state: state.clone(), ended: ended.clone() };
        let (members, lease) = (etcd.members(), session.lease);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(StoreError::Read)?;
        let thread = std::thread::Builder::new().name("lease".into());
        thread.spawn(move || runtime.block_on(keep(&members, lease, ttl, &state, &ended))).map_err(StoreError::Read)?;
        Ok(session)
    }

    /// The lease's number.
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Whether the lease is sure to hold now. Between that and its loss nothing is begun, and nothing is dropped.
    pub fn is_sure(&self) -> bool {
        boot_ms() < self.state.sure_until_ms.load(Ordering::Acquire)
    }

    /// Whether the lease is gone.
    pub fn is_lost(&self) -> bool {
        self.state.lost.load(Ordering::Acquire)
    }

    /// Cancelled when the lease is gone.
    pub fn lost(&self) -> CancellationToken {
        self.state.lost_token.clone()
    }

    /// Nothing more is done in its name: what waits for an answer ends without one.
    pub fn forsake(&self) {
        self.state.lose();
    }

    /// Gives the lease back: what hangs on it is free at once.
    pub fn end(&self, etcd: &Etcd) {
        self.ended.cancel();
        let lease = self.lease;
        // Each member once; otherwise it runs out by itself.
        for _ in 0..etcd.members().len() {
            if etcd.run(async move |mut client| client.lease_revoke(lease).await).is_ok() {
                return;
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl State {
    fn lose(&self) {
        self.sure_until_ms.store(0, Ordering::Release);
        self.lost.store(true, Ordering::Release);
        self.lost_token.cancel();
    }

    fn extend(&self, sent_ms: u64, ttl: Duration) {
        self.sure_until_ms.fetch_max(sent_ms + sure_ms(ttl), Ordering::AcqRel);
    }
}

/// Three quarters of a lease are sure: the rest is for two clocks that differ, and for what is under way.
fn sure_ms(ttl: Duration) -> u64 {
    ttl.as_millis() as u64 * 3 / 4
}

/// Renews the lease until it is gone or given back. The stream is made anew when it breaks: the client does not do that.
async fn keep(members: &Members, lease: i64, ttl: Duration, state: &State, ended: &CancellationToken) {
    let pause = ttl / 4;
    let mut turn = 0;
    while !ended.is_cancelled() && !state.lost.load(Ordering::Acquire) {
        let opening = async { members.client(turn).await?.lease_keep_alive(lease).await };
        let opening = tokio::time::timeout(pause, opening).await;
        turn += 1;
        let (mut keeper, mut answers) = match opening {
            Ok(Ok(open)) => open,
            Ok(Err(error)) if error.to_string().contains("lease not found") => return state.lose(),
            _ => {
                tokio::time::sleep(REOPEN).await;
                continue;
            }
        };
        loop {
            let sent_ms = boot_ms();
            let renewed = async {
                keeper.keep_alive().await.ok()?;
                answers.message().await.ok()?
            };
            let renewed = tokio::select! {
                renewed = tokio::time::timeout(pause, renewed) => renewed.ok().flatten(),
                () = ended.cancelled() => return,
            };
            match renewed {
                Some(answer) if answer.ttl() <= 0 => return state.lose(),
                Some(_) => state.extend(sent_ms, ttl),
                None => break,
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = ended.cancelled() => return,
            }
        }
    }
}
