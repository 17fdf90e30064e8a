//! The committer: the only road to an acknowledgement. It takes all records that wait, makes them durable in one
//! synced write, and tells their owners.

use crate::{
    clock,
    store::{Change, Store, StoreError, layout, outcomes::Outcomes},
    telemetry::Metrics,
};
use capstan_common::id::FunctionKey;
use capstan_scheduler_core::record::{Deployment, Record};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Requests that may wait for the committer.
const WAITING: usize = 1 << 14;
/// The pause before a write is tried again on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// What the committer is asked.
enum Request {
    Records(Group),
    Changes(Vec<Change>, oneshot::Sender<Result<(), StoreError>>),
    Stop,
}

/// One function's records that become durable together.
pub struct Group {
    /// Whose.
    pub owner: FunctionKey,
    /// What became true.
    pub records: Vec<Record>,
    /// Is told when they are durable.
    pub done: mpsc::Sender<()>,
}

/// The way to the committer; a clone is another handle.
#[derive(Clone)]
pub struct Committer {
    requests: flume::Sender<Request>,
    full: Arc<AtomicBool>,
    tight: watch::Receiver<bool>,
    stopping: Arc<AtomicBool>,
    lost: CancellationToken,
}

impl Committer {
    /// Starts the committer's thread.
    pub fn start(
        store: Arc<dyn Store>,
        (functions, outcomes): (BTreeMap<FunctionKey, Deployment>, Outcomes),
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (requests, waiting) = flume::bounded(WAITING);
        let full = Arc::new(AtomicBool::new(false));
        let stopping = Arc::new(AtomicBool::new(false));
        let lost = CancellationToken::new();
        let (full_too, stopping_too) = (full.clone(), stopping.clone());
        let (tell_tight, tight) = watch::channel(false);
        let mut thread = Thread {
            functions,
            outcomes,
            metrics,
            full: full_too,
            tight: tell_tight,
            stopping: stopping_too,
            lost: lost.clone(),
            group_bytes: store.group_bytes(),
            store,
            batch: Vec::new(),
            bytes: 0,
        };
        let handle = std::thread::Builder::new().name("committer".into()).spawn(move || thread.run(&waiting))?;
        Ok((Self { requests, full, tight, stopping, lost }, handle))
    }

    /// Hands over a function's records; gives them back if too much waits.
    pub fn commit(&self, group: Group) -> Result<(), Group> {
        self.requests.try_send(Request::Records(group)).map_err(|error| match error.into_inner() {
            Request::Records(group) => group,
            Request::Changes(..) | Request::Stop => unreachable!("what was sent comes back"),
        })
    }

    /// Makes changes durable that belong to no function's memory, such as packed inputs before their call is accepted.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        // A committer ends with the scheduler, or with its shard.
        let gone = || StoreError::Lost;
        let sent = self.requests.send_async(Request::Changes(changes, reply)).await;
        sent.map_err(|_| gone())?;
        done.await.map_err(|_| gone())?
    }

    /// Whether the disk has refused the last write.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Tells when the store has room for the ends of what runs alone, and when for everything again.
    pub fn tight(&self) -> watch::Receiver<bool> {
        self.tight.clone()
    }

    /// Cancelled when another owner has taken over: nothing is written any more.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Writes what waits and ends.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // An ended thread has nothing left to write.
        let _ = self.requests.send(Request::Stop);
    }
}

struct Thread {
    store: Arc<dyn Store>,
    functions: BTreeMap<FunctionKey, Deployment>,
    outcomes: Outcomes,
    metrics: Arc<Metrics>,
    full: Arc<AtomicBool>,
    tight: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    lost: CancellationToken,
    group_bytes: usize,
    batch: Vec<Change>,
    bytes: usize,
}

impl Thread {
    fn run(&mut self, waiting: &flume::Receiver<Request>) {
        loop {
            let more = self.maintain();
            let first = if more {
                match waiting.try_recv() {
                    Ok(request) => request,
                    Err(flume::TryRecvError::Empty) => continue,
                    Err(flume::TryRecvError::Disconnected) => return,
                }
            } else {
                match self.next(waiting) {
                    Ok(Some(request)) => request,
                    Ok(None) => continue,
                    Err(flume::RecvError::Disconnected) => return,
                }
            };
            if !self.group(first, waiting) {
                self.store.finish();
                return;
            }
        }
    }

    /// The next request. While the store is tight nobody may have any: then it is looked again and again whether there is room.
    fn next(&self, waiting: &flume::Receiver<Request>) -> Result<Option<Request>, flume::RecvError> {
        if !*self.tight.borrow() {
            return waiting.recv().map(Some);
        }
        match waiting.recv_timeout(FULL_PAUSE) {
            Ok(request) => Ok(Some(request)),
            Err(flume::RecvTimeoutError::Timeout) => Ok(None),
            Err(flume::RecvTimeoutError::Disconnected) => Err(flume::RecvError::Disconnected),
        }
    }

    /// Takes all that waits, writes it, and answers. Whether to go on.
    fn group(&mut self, first: Request, waiting: &flume::Receiver<Request>) -> bool {
        let (mut owners, mut writers, mut go_on) = (Vec::new(), Vec::new(), true);
        let mut next = Some(first);
        while let Some(request) = next.take() {
            match request {
                Request::Records(group) => {
                    self.add_records(group.owner, group.records);
                    owners.push(group.done);
                }
                Request::Changes(changes, reply) => {
                    self.bytes += changes.iter().map(size).sum::<usize>();
                    self.batch.extend(changes);
                    writers.push(reply);
                }
                Request::Stop => go_on = false,
            }
            if go_on && self.bytes < self.group_bytes {
                next = waiting.try_recv().ok();
            }
        }
        self.outcomes.flush(&mut self.batch);
        let result = self.write(!owners.is_empty());
        let lost = matches!(result, Err(StoreError::Lost));
        for reply in writers {
            // A writer that went away does not wait for its answer.
            let _ = reply.send(match &result {
                Ok(()) => Ok(()),
                Err(StoreError::Lost) => Err(StoreError::Lost),
                Err(StoreError::TooLarge(size)) => Err(StoreError::TooLarge(*size)),
                Err(_) => Err(StoreError::Full),
            });
        }
        if lost || result.is_err() && !owners.is_empty() {
            // Stopping on a full disk, or not the owner any more: nobody may hear that it is durable.
            return false;
        }
        for done in owners {
            // An owner that is gone has nobody left to tell.
            let _ = done.blocking_send(());
        }
        go_on
    }

    fn add_records(&mut self, owner: FunctionKey, records: Vec<Record>) {
        let mut live = self.functions.remove(&owner);
        let before = self.batch.len();
        for record in records {
            layout::changes(&owner, record, &mut live, &mut self.outcomes, &mut self.batch);
        }
        self.bytes += self.batch[before..].iter().map(size).sum::<usize>();
        if let Some(live) = live {
            self.functions.insert(owner, live);
        }
    }

    /// Writes the batch. On a full disk it waits for room if an owner's memory rests on it, and refuses otherwise.
    /// After a write of unknown effect the process ends: the next start reads what really is there.
    fn write(&mut self, owned: bool) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        loop {
            let begun = clock::now();
            match self.store.commit(&batch) {
                Ok(()) => {
                    self.full.store(false, Ordering::Release);
                    self.metrics.committed(clock::now().since_us(begun), batch.len());
                    return Ok(());
                }
                Err(StoreError::Full) if owned => {
                    if !self.full.swap(true, Ordering::AcqRel) {
                        tracing::error!(
                            room = self.store.room(),
                            "the store is full: new work is refused until there is room"
                        );
                    }
                    if self.stopping.load(Ordering::Acquire) {
                        return Err(StoreError::Full);
                    }
                    // What is reclaimed may be room enough.
                    if !self.maintain() {
                        std::thread::sleep(FULL_PAUSE);
                    }
                }
                Err(StoreError::Lost) => {
                    self.lost.cancel();
                    return Err(StoreError::Lost);
                }
                Err(error @ StoreError::TooLarge(_)) if !owned => return Err(error),
                Err(error @ StoreError::TooLarge(_)) => {
                    // Nothing was written, and no acknowledgement rests on it: memory that runs ahead of the store is dropped,
                    // and what the store has is read again. To end the process would help nobody: it would come again.
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a record does not fit the store: the shard is read again"
                    );
                    self.lost.cancel();
                    return Err(StoreError::Lost);
                }
                Err(StoreError::Full) => {
                    self.full.store(true, Ordering::Release);
                    return Err(StoreError::Full);
                }
                Err(error) => abort(&error),
            }
        }
    }

    /// One round of housekeeping. Whether there is more to do.
    fn maintain(&self) -> bool {
        let tight = self.store.is_tight();
        self.tight.send_if_modified(|before| std::mem::replace(before, tight) != tight);
        match self.store.maintain() {
            Ok(more) => more,
            // What is not reached or not ours shows with the next write.
            Err(StoreError::Full | StoreError::Lost | StoreError::Silent(_) | StoreError::Read(_)) => false,
            Err(error) => abort(&error),
        }
    }
}

/// After a write of unknown effect, or damage, memory and disk may differ: the next start reads what really is there.
fn abort(error: &StoreError) -> ! {
    tracing::error!(error = error as &dyn std::error::Error, "the store failed: stopping, start again");
    std::process::abort();
}

fn size(change: &Change) -> usize {
    match change {
        Change::Put(key, value) => key.len() + value.len(),
        Change::Delete(key) => key.len(),
    }
}
