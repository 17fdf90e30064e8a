//! Threads that run an exec container's inputs: starting a process blocks, and a thread can enter a cgroup so that its
//! children are born inside.

use super::exec::{self, Ended, Shared, Work};
use capstan_common::input::{Failure, FailureKind};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a thread without work is kept.
const IDLE: Duration = Duration::from_secs(10);

/// Threads of a container: made when there is work, gone when there has been none for a while.
#[derive(Clone)]
pub struct Slots {
    most: u32,
    made: Arc<AtomicU32>,
    /// Boxed: a queue keeps its room, and thousands of containers idle with an empty one.
    sender: flume::Sender<Box<Work>>,
    receiver: flume::Receiver<Box<Work>>,
}

impl Slots {
    /// None yet, and `most` at one time.
    pub fn new(most: u32) -> Self {
        let (sender, receiver) = flume::unbounded();
        Self { most, made: Arc::default(), sender, receiver }
    }

    /// Hands work over; makes a thread for it if there may be one more.
    pub fn send(&self, shared: &Arc<Shared>, work: Work) {
        // The receiver is here: it takes.
        let _ = self.sender.send(Box::new(work));
        // Only now: a thread that found nothing and is about to go has either seen this work, or is not counted any more.
        let more = |made| (made < self.most).then_some(made + 1);
        if self.made.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_err() {
            return;
        }
        let owner = shared;
        let (shared, made, work) = (shared.clone(), self.made.clone(), self.receiver.clone());
        let thread = std::thread::Builder::new().name("exec-slot".into()).stack_size(256 << 10);
        if let Err(error) = thread.spawn(move || slot(&shared, &work, &made)) {
            tracing::error!(%error, "a thread for a container cannot be made");
            // Another thread of the container takes it later; without one nobody would.
            if self.made.fetch_sub(1, Ordering::SeqCst) == 1
                && let Ok(work) = self.receiver.try_recv()
            {
                let what = format!("a thread for the program cannot be made: {error}");
                let result = Err(Failure::new(FailureKind::Function, "StartFailed", what));
                let _ = owner.ended.send(Box::new(Ended { assignment: work.assignment, result, run: Duration::ZERO }));
            }
        }
    }
}

/// A slot: takes work until there has been none for a while.
fn slot(shared: &Shared, work: &flume::Receiver<Box<Work>>, made: &AtomicU32) {
    // Children of ours are born in the cgroup; an init enters it by itself.
    let own = shared.setting.cgroup.as_ref().filter(|_| shared.setting.apart.is_none());
    if let Some(cgroup) = own {
        cgroup.enter_thread();
    }
    // Made with the first input, and gone with the thread: an idle slot holds no process.
    let mut init = None;
    let next = || {
        work.recv_timeout(IDLE).ok().or_else(|| {
            made.fetch_sub(1, Ordering::SeqCst);
            work.try_recv().ok().inspect(|_| {
                made.fetch_add(1, Ordering::SeqCst);
            })
        })
    };
    while let Some(work) = next() {
        let Work { assignment, input } = *work;
        let begun = Instant::now();
        let result = exec::run(shared, &mut init, &assignment, &input);
        // Whoever listens lives as long as the container.
        let _ = shared.ended.send(Box::new(Ended { assignment, result, run: begun.elapsed() }));
    }
    drop(init);
    if let Some(cgroup) = own {
        cgroup.leave_thread();
    }
}
