//! The shell around the node's core: it stamps events and performs effects on real containers.

use super::{container::Running, link::BACKLOG};
use crate::{
    config::{self, WorkerConfig},
    runtime::{
        cgroup::Cgroups, gpu, init::AUTHORITY_FILE, isolation::Keeping, port::Ports, process::Setting,
        program::Program, tree, volume::Volumes,
    },
};
use actix::prelude::*;
use capstan_blob::Blobs;
use capstan_clock::now;
use capstan_common::{
    container::Ending,
    function::{Process, Runtime},
    gpu::Gpu,
    id::{ContainerId, LinkId},
    order::{AUTHORITY, Order, Start},
    report::{Hello, Report},
    resource::Amount,
    time::Time,
    wire::{OLDEST_PROTOCOL, PROTOCOL},
};
use capstan_worker_core::node::{Effect, Event, Node};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Reports that may wait before output is left out: 16 KiB each, at most.
const LOGS_WAITING: usize = 2048;

/// Owns the node.
pub struct NodeActor {
    core: Node,
    config: WorkerConfig,
    gpus: Vec<Gpu>,
    instance: Arc<str>,
    scratch: PathBuf,
    cgroups: Cgroups,
    limits: String,
    keeping: Keeping,
    blobs: Blobs,
    ports: Ports,
    containers: BTreeMap<ContainerId, Running>,
    outboxes: BTreeMap<LinkId, (mpsc::Sender<Report>, CancellationToken)>,
    out: Vec<Effect>,
    alarm_at: Option<Time>,
    shutting: Option<oneshot::Sender<()>>,
}

/// Something happened to a container.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Happen(pub Event);

/// Orders came.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Orders {
    /// By this link.
    pub link: LinkId,
    /// The orders.
    pub orders: Vec<Order>,
}

/// A link is being made: answers who we are, and from now on reports go there.
#[derive(Message)]
#[rtype(result = "Hello")]
pub struct Introduce {
    /// Which link.
    pub link: LinkId,
    /// Where reports go.
    pub outbox: mpsc::Sender<Report>,
    /// Ends the link, when reports find no room.
    pub cut: CancellationToken,
}

/// A link broke.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Parted(pub LinkId);

/// Asks what containers of other links' owners take, and which GPUs are free.
#[derive(Message)]
#[rtype(result = "(Amount, Vec<Arc<str>>)")]
pub struct Pulse(pub LinkId);

/// Begin nothing new and stop what has no work, or stop everything now; answered when nothing is left.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shut {
    /// How long what runs may go on.
    pub within: Duration,
    /// Whether to cut it off.
    pub now: bool,
}

impl NodeActor {
    /// An empty node.
    pub fn new(
        (config, gpus): (WorkerConfig, Vec<Gpu>),
        instance: Arc<str>,
        scratch: PathBuf,
        cgroups: Cgroups,
        limits: String,
        keeping: Keeping,
        blobs: Blobs,
    ) -> Self {
        Self {
            core: Node::new(config.capacity(), gpus.iter().map(|gpu| gpu.uuid.as_str().into()).collect()),
            config,
            gpus,
            instance,
            scratch,
            cgroups,
            limits,
            keeping,
            blobs,
            ports: Ports::new(),
            containers: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            out: Vec::new(),
            alarm_at: None,
            shutting: None,
        }
    }

    fn step(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut out = std::mem::take(&mut self.out);
        self.core.step(now(), event, &mut out);
        for effect in out.drain(..) {
            self.perform(effect, ctx);
        }
        self.out = out;
        self.set_alarm(ctx);
        if self.core.live() == 0
            && let Some(done) = self.shutting.take()
        {
            // Whoever waited may have gone.
            let _ = done.send(());
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::Launch { start, gpus } => self.launch(&start, &gpus, ctx),
            Effect::Run { container, group, assignments, batch } => {
                if let Some(running) = self.containers.get(&container) {
                    running.work(group, assignments, batch);
                }
            }
            Effect::Interrupt { container, group } => {
                if let Some(running) = self.containers.get(&container) {
                    running.interrupt(group);
                }
            }
            Effect::Terminate { container, grace_ms, reason } => {
                if let Some(running) = self.containers.get(&container) {
                    running.terminate(Duration::from_millis(u64::from(grace_ms)), reason);
                }
            }
            Effect::Tell(link, report) => self.tell(link, report),
        }
    }

    /// A report that finds no room breaks the link: the next inventory tells everything.
    fn tell(&mut self, link: LinkId, report: Report) {
        let Some((outbox, cut)) = self.outboxes.get(&link) else { return };
        // Output is the first that is left out where a scheduler does not read: of all reports it alone has no bound of its own.
        if matches!(report, Report::Log { .. }) && outbox.capacity() < BACKLOG - LOGS_WAITING {
            return;
        }
        if outbox.try_send(report).is_err() {
            tracing::warn!(waiting = BACKLOG, "the scheduler does not take reports: the link is cut");
            cut.cancel();
            self.outboxes.remove(&link);
        }
    }

    fn launch(&mut self, start: &Start, gpus: &[Arc<str>], ctx: &mut Context<Self>) {
        let id = start.container;
        if self.config.runtime == config::Runtime::Sim {
            let ms = |ms: u32| Duration::from_millis(u64::from(ms));
            let times = (ms(self.config.sim_start_ms), ms(self.config.sim_run_ms));
            self.containers.insert(id, Running::simulate(id, times, ctx.address()));
            return;
        }
        match self.setting(start, gpus) {
            Ok(setting) => {
                let payloads = (self.blobs.clone(), self.config.output_max_bytes);
                let running = Running::launch(start, setting, payloads, &self.ports, ctx.address());
                self.containers.insert(id, running);
            }
            Err(reason) => {
                ctx.notify(Happen(Event::Exited { container: id, ending: Ending { reason, ..Ending::default() } }));
            }
        }
    }

    fn setting(&self, start: &Start, gpus: &[Arc<str>]) -> Result<Setting, String> {
        let Runtime::Process(process) = &start.spec.runtime else {
            return Err("this worker runs processes only".into());
        };
        let (id, spec) = (start.container.to_string(), &start.spec);
        let scratch = self.scratch.join(&id);
        let apart = self.keeping.of(&start.function, &start.spec)?;
        let authority = start.env.get(AUTHORITY).cloned();
        if apart.is_none() {
            let made = std::fs::create_dir_all(&scratch)
                .and_then(|()| authority.iter().try_for_each(|pem| std::fs::write(scratch.join(AUTHORITY_FILE), pem)));
            made.map_err(|error| format!("the scratch folder cannot be made: {error}"))?;
        }
        let owner = apart.as_ref().and_then(|apart| apart.user);
        let volumes = Volumes::open(&self.config.volumes(), &start.function, &start.spec.volumes, owner)?;
        Ok(Setting {
            container: start.container,
            program: self.program(start, process, &scratch, gpus),
            scratch,
            volumes,
            instance: self.instance.clone(),
            authority,
            cgroup: self.cgroups.create(&id, spec.memory_mib, spec.cpu.milli),
            apart,
        })
    }

    /// The program with its whole environment: the function's own part wins over ours, but for what names its container.
    fn program(&self, start: &Start, process: &Process, scratch: &Path, gpus: &[Arc<str>]) -> Program {
        let mut env = Program::base_env(scratch);
        env.extend(start.env.clone());
        if let Some(pem) = env.get_mut(AUTHORITY) {
            *pem = scratch.join(AUTHORITY_FILE).display().to_string();
        }
        env.extend(process.env.clone());
        env.extend(start.spec.parameters.clone());
        env.extend(gpu::environment(&self.gpus, gpus).into_iter().map(|(name, value)| (name.to_owned(), value)));
        env.insert(tree::CONTAINER.into(), start.container.to_string());
        env.insert(tree::WORKER.into(), self.instance.to_string());
        let folder = process.working_dir.as_deref().map_or_else(|| scratch.to_owned(), PathBuf::from);
        Program { command: process.command.clone(), folder, env: env.into() }
    }

    fn set_alarm(&mut self, ctx: &mut Context<Self>) {
        let Some(at) = self.core.next_alarm() else { return };
        if self.alarm_at.is_some_and(|set| set <= at) {
            return;
        }
        self.alarm_at = Some(at);
        let wait = Duration::from_micros(at.since_us(now()));
        let node = ctx.address();
        // A task of its own: a busy actor's timers starve behind its mailbox.
        actix::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = node.send(Happen(Event::Alarm)).await;
        });
    }
}

impl Actor for NodeActor {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1 << 14);
    }
}

impl Handler<Happen> for NodeActor {
    type Result = ();
    fn handle(&mut self, Happen(event): Happen, ctx: &mut Context<Self>) {
        match &event {
            Event::Alarm => self.alarm_at = None,
            Event::Exited { container, .. } => drop(self.containers.remove(container)),
            _ => {}
        }
        self.step(event, ctx);
    }
}

impl Handler<Orders> for NodeActor {
    type Result = bool;
    fn handle(&mut self, Orders { link, orders }: Orders, ctx: &mut Context<Self>) -> bool {
        for order in orders {
            if !self.outboxes.contains_key(&link) {
                return false;
            }
            self.step(Event::Ordered { link, order }, ctx);
        }
        self.outboxes.contains_key(&link)
    }
}

impl Handler<Introduce> for NodeActor {
    type Result = MessageResult<Introduce>;
    fn handle(&mut self, introduce: Introduce, _: &mut Context<Self>) -> Self::Result {
        let real = self.config.runtime == config::Runtime::Process;
        self.outboxes.insert(introduce.link, (introduce.outbox, introduce.cut));
        MessageResult(Hello {
            protocols: OLDEST_PROTOCOL..=PROTOCOL,
            worker: self.config.name.clone(),
            capacity: self.core.resources().0,
            version: env!("CARGO_PKG_VERSION").into(),
            limits: self.limits.clone(),
            isolation: self.keeping.isolation.clone(),
            instance: self.instance.to_string(),
            // One that cannot be read is another than the schedulers'.
            store: real.then(|| self.blobs.name().unwrap_or_default()),
            host: self.config.advertise.parse().ok(),
            gpus: self.gpus.clone(),
        })
    }
}

impl Handler<Pulse> for NodeActor {
    type Result = MessageResult<Pulse>;
    fn handle(&mut self, Pulse(link): Pulse, _: &mut Context<Self>) -> Self::Result {
        MessageResult((self.core.others(link), self.core.idle_gpus()))
    }
}

impl Handler<Parted> for NodeActor {
    type Result = ();
    fn handle(&mut self, Parted(link): Parted, ctx: &mut Context<Self>) {
        self.outboxes.remove(&link);
        self.step(Event::Parted { link }, ctx);
    }
}

impl Handler<Shut> for NodeActor {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, shut: Shut, ctx: &mut Context<Self>) -> Self::Result {
        let (done, waiting) = oneshot::channel();
        self.shutting = Some(done);
        self.step(if shut.now { Event::Shutdown } else { Event::Drain }, ctx);
        Box::pin(async move {
            // Past the limit the caller goes on without it.
            let _ = tokio::time::timeout(shut.within, waiting).await;
        })
    }
}
