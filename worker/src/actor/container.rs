//! One running container: its processes, its slots, its end.

use super::node::{Happen, NodeActor};
use crate::{
    protocol::{
        self, Results, activity, all_failed,
        exec::{self, Ended, Shared, Work},
        http::Server,
        slots::Slots,
    },
    runtime::{
        output::Output,
        port::{Port, Ports},
        process::Setting,
        served::Served,
        sim::Simulated,
    },
};
use actix::Addr;
use capstan_blob::Blobs;
use capstan_common::{
    container::{Ending, Phase},
    function::Protocol,
    id::{ContainerId, LeaseId},
    input::{Body, Failure, FailureKind, Format},
    order::{Assignment, Start},
};
use capstan_worker_core::node::{CONNECTION_BROKEN, Event};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::task::AbortOnDropHandle;

/// How long a broken connection waits for its container's end, which says more.
const END_MS: u64 = 100;

/// Ends that follow each other so closely are many.
const MANY: Duration = Duration::from_micros(700);

/// Whether, how, and why a container is to end.
#[derive(Debug, Clone, Default)]
struct Stop {
    asked: Option<(Duration, String)>,
}

/// A container that was launched.
pub struct Running {
    kind: Kind,
    stop: watch::Sender<Stop>,
}

enum Kind {
    Exec { shared: Arc<Shared>, slots: Slots, blobs: Blobs, tell: Tell },
    Http { server: Server, groups: Groups, over: watch::Receiver<bool>, tell: Tell },
    Sim(Simulated),
}

type Groups = Rc<RefCell<BTreeMap<LeaseId, tokio::task::AbortHandle>>>;

/// The way to the node.
#[derive(Clone)]
pub struct Tell {
    node: Addr<NodeActor>,
    /// Whose.
    pub container: ContainerId,
}

impl Tell {
    /// Waits where the node is busy; a node that is gone needs no telling.
    pub async fn tell(&self, event: Event) {
        let _ = self.node.send(Happen(event)).await;
    }

    /// From a thread of its own.
    fn tell_blocking(&self, event: Event) {
        let mut happen = Happen(event);
        loop {
            match self.node.try_send(happen) {
                Err(actix::dev::SendError::Full(back)) => {
                    happen = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => return,
            }
        }
    }

    /// The container is gone.
    pub async fn exited(&self, ending: Ending) {
        self.tell(Event::Exited { container: self.container, ending }).await;
    }
}

impl Running {
    /// Launches a container; its life is told to the node.
    pub fn launch(
        start: &Start,
        setting: Setting,
        (blobs, output_max): (Blobs, usize),
        ports: &Ports,
        node: Addr<NodeActor>,
    ) -> Self {
        let (stop, stopped) = watch::channel(Stop::default());
        let tell = Tell { node, container: start.container };
        let timeout_ms = start.spec.timeout_ms;
        let kind = match start.spec.protocol {
            Protocol::Exec => {
                if let (Some(cgroup), Some(cap)) = (&setting.cgroup, start.spec.cpu_limit) {
                    cgroup.cap_cpu(cap.milli);
                }
                let (ended, ends) = flume::unbounded();
                actix::spawn(exec_ends(ends, blobs.clone(), tell.clone()));
                let shared = exec_shared(setting, timeout_ms, output_max, &tell, ended);
                let slots = Slots::new(start.spec.at_once);
                actix::spawn(exec_life(shared.clone(), stopped, tell.clone()));
                Kind::Exec { shared, slots, blobs, tell }
            }
            Protocol::Http => {
                let port = ports.take();
                let server = Server::new(port.number(), blobs, output_max, timeout_ms);
                let (over, is_over) = watch::channel(false);
                let life = HttpLife {
                    start: start.clone(),
                    setting: Arc::new(setting),
                    server: server.clone(),
                    tell: tell.clone(),
                    output: Output::default(),
                    port,
                };
                actix::spawn(life.run(stopped, over));
                Kind::Http { server, groups: Groups::default(), over: is_over, tell }
            }
        };
        Self { kind, stop }
    }

    /// Launches one without a process.
    pub fn simulate(container: ContainerId, (start, run): (Duration, Duration), node: Addr<NodeActor>) -> Self {
        let kind = Kind::Sim(Simulated::launch(Tell { node, container }, start, run));
        Self { kind, stop: watch::channel(Stop::default()).0 }
    }

    /// Works on a group.
    pub fn work(&self, group: LeaseId, assignments: Vec<Assignment>, batch: bool) {
        match &self.kind {
            Kind::Sim(simulated) => simulated.work(group, assignments),
            Kind::Exec { shared, slots, blobs, tell } => {
                for assignment in assignments {
                    if let (Format::Json, Body::Inline(input)) = (assignment.payload.format, &assignment.payload.body) {
                        let input = input.clone();
                        slots.send(shared, Work { assignment, input });
                        continue;
                    }
                    let (shared, slots, blobs, tell) = (shared.clone(), slots.clone(), blobs.clone(), tell.clone());
                    actix::spawn(async move {
                        match protocol::input(&blobs, &assignment).await {
                            Ok(input) => slots.send(&shared, Work { assignment, input }),
                            Err(failure) => {
                                let results = vec![(assignment.lease, Err(failure))];
                                let (container, group) = (tell.container, assignment.lease);
                                tell.tell(Event::Worked { container, group, results, run_us: 0 }).await;
                            }
                        }
                    });
                }
            }
            Kind::Http { server, groups, over, tell } => {
                let (server, done) = (server.clone(), groups.clone());
                let (over, tell) = (over.clone(), tell.clone());
                let task = actix::spawn(async move {
                    let begun = Instant::now();
                    let results = http_group(&server, &assignments, batch, over).await;
                    done.borrow_mut().remove(&group);
                    if let Some(results) = results {
                        let run_us = begun.elapsed().as_micros() as u64;
                        tell.tell(Event::Worked { container: tell.container, group, results, run_us }).await;
                    }
                });
                groups.borrow_mut().insert(group, task.abort_handle());
            }
        }
    }

    /// Interrupts a group; its results are not wanted.
    pub fn interrupt(&self, group: LeaseId) {
        match &self.kind {
            Kind::Sim(simulated) => simulated.interrupt(group),
            Kind::Exec { shared, .. } => {
                shared.running.interrupt(group);
                let shared = shared.clone();
                actix::spawn(async move {
                    tokio::time::sleep(exec::GRACE).await;
                    shared.running.kill(group);
                });
            }
            Kind::Http { groups, .. } => {
                if let Some(task) = groups.borrow_mut().remove(&group) {
                    task.abort();
                }
            }
        }
    }

    /// Stops it: TERM, and KILL after the grace.
    pub fn terminate(&self, grace: Duration, reason: String) {
        match &self.kind {
            Kind::Sim(simulated) => simulated.terminate(reason),
            _ => drop(self.stop.send_replace(Stop { asked: Some((grace, reason)) })),
        }
    }
}

fn exec_shared(
    setting: Setting,
    timeout_ms: u64,
    output_max: usize,
    tell: &Tell,
    ended: flume::Sender<Box<Ended>>,
) -> Arc<Shared> {
    let tell = tell.clone();
    Arc::new(Shared {
        setting,
        timeout_ms,
        output_max,
        running: exec::Running::default(),
        oom_kills: Default::default(),
        output: Output::default(),
        log: Box::new(move |chunk, dropped| {
            let container = tell.container;
            tell.tell_blocking(Event::Wrote { container, stderr: true, chunk, dropped });
        }),
        ended,
    })
}

/// Tells the node what the slots finish; large outputs are kept first. While many end, they wait a moment for each other: every
/// waking of everybody up to the client costs more than a small program.
async fn exec_ends(ended: flume::Receiver<Box<Ended>>, blobs: Blobs, tell: Tell) {
    let mut last = Instant::now();
    while let Ok(end) = ended.recv_async().await {
        if last.elapsed() < MANY {
            tokio::time::sleep(MANY).await;
        }
        last = Instant::now();
        // Boxed, here and below: thousands of idle containers wait in these two, and need no room for what comes after.
        Box::pin(exec_end(*end, &blobs, &tell)).await;
        for end in ended.drain() {
            Box::pin(exec_end(*end, &blobs, &tell)).await;
        }
    }
}

async fn exec_end(Ended { assignment, result, run }: Ended, blobs: &Blobs, tell: &Tell) {
    let group = assignment.lease;
    let result = match result {
        Ok(bytes) => protocol::keep(blobs, assignment.call, assignment.index, group, bytes).await,
        Err(failure) => Err(failure),
    };
    let (container, run_us) = (tell.container, run.as_micros() as u64);
    tell.tell(Event::Worked { container, group, results: vec![(group, result)], run_us }).await;
}

/// An exec container is ready at once; it ends when it is told to.
async fn exec_life(shared: Arc<Shared>, mut stopped: watch::Receiver<Stop>, tell: Tell) {
    let container = tell.container;
    if let Some(reason) = shared.setting.obstacle() {
        Box::pin(tell.exited(Ending { reason, ..Ending::default() })).await;
        return;
    }
    Box::pin(tell.tell(Event::Ready { container, phases: Vec::new(), port: 0 })).await;
    let asked = stopped.wait_for(|stop| stop.asked.is_some()).await.ok().and_then(|stop| stop.asked.clone());
    let (grace, reason) = asked.unwrap_or_default();
    Box::pin(exec_stop(shared, grace, reason, tell)).await;
}

async fn exec_stop(shared: Arc<Shared>, grace: Duration, reason: String, tell: Tell) {
    // Scaling stops only idle containers; an operator's stop interrupts what runs.
    shared.running.interrupt_all(grace).await;
    let setting = shared.clone();
    let killing = tokio::task::spawn_blocking(move || setting.setting.kill_rest());
    let _ = killing.await;
    tell.exited(Ending { reason, exit_code: Some(0), ..Ending::default() }).await;
    // As above: whoever drops it last must not be the worker's own thread.
    let removing = tokio::task::spawn_blocking(move || drop(shared));
    let _ = removing.await;
}

/// A group's results; `None` if the container ended with it, whose end then tells of it.
async fn http_group(
    server: &Server,
    assignments: &[Assignment],
    batch: bool,
    mut over: watch::Receiver<bool>,
) -> Option<Results> {
    match server.run(assignments, batch).await {
        Ok(results) => Some(results),
        Err(error) => {
            let ended = tokio::time::timeout(Duration::from_millis(END_MS), over.wait_for(|over| *over)).await;
            if matches!(ended, Ok(Ok(_))) {
                return None;
            }
            let leases: Vec<_> = assignments.iter().map(|a| a.lease).collect();
            let failure = Failure::new(FailureKind::Function, CONNECTION_BROKEN, error);
            Some(all_failed(&leases, &failure))
        }
    }
}

struct HttpLife {
    start: Start,
    setting: Arc<Setting>,
    server: Server,
    tell: Tell,
    output: Output,
    port: Port,
}

impl HttpLife {
    async fn run(self, stopped: watch::Receiver<Stop>, over: watch::Sender<bool>) {
        let ending = match self.spawn().await {
            Ok(served) => self.live(served, stopped).await,
            Err(reason) => Ending { reason, ..Ending::default() },
        };
        over.send_replace(true);
        self.tell.exited(ending).await;
        let setting = self.setting;
        // Removing its folder and cgroup takes as long as it takes, and must not hold up the others.
        let removing = tokio::task::spawn_blocking(move || drop(setting));
        let _ = removing.await;
    }

    async fn spawn(&self) -> Result<Served, String> {
        Served::start(self.setting.clone(), BTreeMap::from([("PORT", self.port.number().to_string())])).await
    }

    /// From its first breath to its last.
    async fn live(&self, mut served: Served, mut stopped: watch::Receiver<Stop>) -> Ending {
        self.tell.tell(Event::Spawned { container: self.tell.container, pid: served.pid() }).await;
        let outputs = [self.forward(served.stdout.take(), false), self.forward(served.stderr.take(), true)];
        let begun = Instant::now();
        let looked = async |detail| {
            self.tell.tell(Event::Looked { container: self.tell.container, detail }).await;
        };
        let mut late = false;
        let mut reason = tokio::select! {
            () = self.server.ready(looked) => None,
            _ = served.ended() => Some(served.not_started.take().unwrap_or("it ended before it was ready".into())),
            why = asked(&mut stopped) => Some(why.1),
            () = tokio::time::sleep(Duration::from_millis(self.start.spec.startup_timeout_ms)) => {
                late = true;
                let limit = self.start.spec.startup_timeout_ms as f64 / 1000.0;
                Some(format!("it was not ready within startup_timeout_s ({limit} s): {}", self.server.last_look()))
            }
        };
        if reason.is_none() {
            let phases = vec![Phase { name: "ready".into(), us: begun.elapsed().as_micros() as u64 }];
            if let (Some(cgroup), Some(cap)) = (&self.setting.cgroup, self.start.spec.cpu_limit) {
                cgroup.cap_cpu(cap.milli);
            }
            let (container, port) = (self.tell.container, self.port.number());
            self.tell.tell(Event::Ready { container, phases, port }).await;
            let _counting = self.count_requests();
            reason = Some(tokio::select! {
                _ = served.ended() => "it ended by itself".to_owned(),
                (grace, why) = asked(&mut stopped) => {
                    served.terminate();
                    let _ = tokio::time::timeout(grace, served.ended()).await;
                    why
                }
            });
        }
        let ending = self.end(served, reason.unwrap_or_default(), outputs).await;
        // The signal that ends one that is late is ours, and tells nothing.
        if late { Ending { exit_code: None, signal: None, ..ending } } else { ending }
    }

    /// Reads the server's own counter of requests, if it is to be read, until the answer is dropped.
    fn count_requests(&self) -> Option<AbortOnDropHandle<()>> {
        let activity = self.start.spec.activity.clone()?;
        let (server, tell) = (self.server.clone(), self.tell.clone());
        let task = actix::spawn(activity::watch(server, activity, async move |value| {
            tell.tell(Event::Counted { container: tell.container, value }).await;
        }));
        Some(AbortOnDropHandle::new(task))
    }

    async fn end(&self, served: Served, reason: String, outputs: [JoinHandle<()>; 2]) -> Ending {
        let (exit_code, signal) = served.end(self.setting.clone()).await;
        let setting = self.setting.clone();
        let asking = tokio::task::spawn_blocking(move || setting.cgroup.as_ref().is_some_and(|c| c.oom_kills() > 0));
        let oom = asking.await.unwrap_or(false);
        // Its last words may still be in the pipes; everything that wrote to them is gone.
        let last_words = futures_util::future::join_all(outputs);
        let _ = tokio::time::timeout(Duration::from_millis(END_MS), last_words).await;
        Ending { exit_code, signal, oom, ordered: false, reason, tail: self.output.tail() }
    }

    /// Forwards a pipe as logs.
    fn forward(&self, pipe: Option<impl AsyncRead + Unpin + 'static>, stderr: bool) -> JoinHandle<()> {
        let (tell, output) = (self.tell.clone(), self.output.clone());
        actix::spawn(async move {
            let Some(mut pipe) = pipe else { return };
            let mut buffer = vec![0u8; 16 << 10];
            while let Ok(n) = pipe.read(&mut buffer).await {
                if n == 0 {
                    return;
                }
                if let Some((chunk, dropped)) = output.take(&buffer[..n]) {
                    let container = tell.container;
                    tell.tell(Event::Wrote { container, stderr, chunk, dropped }).await;
                }
            }
        })
    }
}

async fn asked(stopped: &mut watch::Receiver<Stop>) -> (Duration, String) {
    match stopped.wait_for(|stop| stop.asked.is_some()).await {
        Ok(stop) => stop.asked.clone().unwrap_or_default(),
        // The node is gone: so shall we be.
        Err(_) => (Duration::ZERO, "the worker ends".into()),
    }
}
