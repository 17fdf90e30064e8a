//! Functions: deploy, look at, scale, remove.

use super::Api;
use crate::{
    actor::{
        autoscaler::Impossible,
        function::{Deploy, Deployed, Tell},
    },
    clock,
    store::{
        layout::{self, StoredCall},
        store_refusal, stored,
    },
    telemetry::events::About,
};
use capstan_common::{
    function::{ActivitySource, FunctionSpec, OverridesPatch, Runtime},
    id::{CallId, ContainerId, FunctionKey, Revision},
    input::Outcome,
    isolation::Needs,
    parameter,
    refusal::{Code, Refusal},
    resource::Amount,
    stats::Stats,
    time::Time,
    validate,
    worker::WorkerState,
};
use capstan_scheduler_core::{
    decision::{Decision, Waiting},
    event::Event,
    function::{InputView, Progress},
    record::{Deployment, Entry, Tries},
};
use capstan_verb::{
    access::Subject,
    call::{InputLife, Step},
    function::{
        DecidedBy, DecisionView, ExplainView, FunctionView, FunctionsView, List, RolloutView, ScaleToZeroView,
        SettingsView,
    },
};
use serde_json::json;
use std::sync::Arc;

/// Calls that are looked at for one piece of recorded traffic.
const RECORDED_PAGE: usize = 256;
/// Bytes of recorded traffic in a page, about.
const RECORDED_BYTES: usize = 1 << 20;

/// The largest spec, as it is stored: etcd takes no value of more than a megabyte, and numbers may grow when they are written.
const STORED_SPEC_BYTES: usize = 256 << 10;
/// Specs that are checked at one time.
static VALIDATING: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);
/// Bytes of functions in one page of a list, about.
const PAGE_BYTES: usize = 4 << 20;

impl Api {
    /// Refuses one more function where a namespace has as many, or as large ones, as it may have.
    fn must_have_room_for(&self, key: &FunctionKey, size: usize) -> Result<(), Refusal> {
        let limits = &self.config.limits;
        let (count, bytes) = self.env.registry.held(&key.namespace, key);
        if count >= limits.functions_per_namespace {
            let detail = format!(
                "a namespace has at most {} functions (limits.functions_per_namespace), `{}` has as many: remove some",
                limits.functions_per_namespace, key.namespace
            );
            return Err(Refusal::exhausted(detail, 60));
        }
        if bytes + size > limits.spec_bytes_per_namespace {
            let detail = format!(
                "the specs of a namespace have at most {} bytes together (limits.spec_bytes_per_namespace), with this one `{}` would have {}",
                limits.spec_bytes_per_namespace,
                key.namespace,
                bytes + size
            );
            return Err(Refusal::exhausted(detail, 60));
        }
        Ok(())
    }

    /// Whether a spec can be deployed here and now.
    ///
    /// # Errors
    /// What is wrong with it, by field; or the store takes nothing new.
    pub async fn deployable(&self, key: &FunctionKey, spec: &FunctionSpec) -> Result<(), Refusal> {
        let size = serde_json::to_string(spec).map_or(usize::MAX, |text| text.len());
        if size > STORED_SPEC_BYTES {
            let detail = format!(
                "a function's spec has at most {STORED_SPEC_BYTES} bytes as it is stored, this has {size}: pass large values as inputs, or put them into a volume"
            );
            return Err(Refusal::field("", detail));
        }
        // Half a second, where profiles change every minute: not on a thread that serves others, and few at a time.
        let _turn = VALIDATING.acquire().await;
        let checked = spec.clone();
        let checked = tokio::task::spawn_blocking(move || {
            validate::new_spec(&checked)?;
            validate::spec(&checked)?;
            validate::profiles(&checked)
        });
        checked.await.map_err(|_| Refusal::new(Code::Unavailable, "the scheduler ends"))??;
        self.must_have_secrets(key, spec)?;
        self.must_reach(key, spec).await?;
        self.must_have_room_for(key, size)?;
        let most = self.config.limits.system_max_containers;
        validate::within_system(&spec.autoscaler, "/autoscaler", most)?;
        for (n, profile) in spec.profiles.iter().enumerate() {
            let settings = profile.autoscaler.over(&spec.autoscaler);
            validate::within_system(&settings, &format!("/profiles/{n}/autoscaler"), most)?;
        }
        self.must_have_room(key.place())?;
        if let Runtime::Process(process) = &spec.runtime
            && let Some(folder) = &process.working_dir
            && !folder.starts_with('/')
        {
            let detail = format!("must be an absolute path, is `{folder}`");
            let pointer = "/runtime/process/working_dir".to_owned();
            return Err(Refusal::fields(vec![capstan_common::refusal::FieldError { pointer, detail }]));
        }
        if spec.activity.as_ref().is_some_and(|a| a.source == ActivitySource::Prometheus)
            && self.env.prometheus.is_none()
        {
            let detail = "is prometheus, and the scheduler knows of none; set its prometheus_url, or take `container`";
            return Err(Refusal::field("activity/source", detail));
        }
        if !spec.bound.is_empty() {
            return Err(Refusal::field(
                "bound",
                "comes from an instance's name, like FUNCTION;name=value; leave it out",
            ));
        }
        Ok(())
    }

    /// Whether this subject may deploy this spec, and the spec as it is deployed then: only admins deploy what runs as a worker's
    /// user, and whoever is limited to namespaces deploys what is kept apart wholly.
    ///
    /// # Errors
    /// They may not.
    pub async fn entrusted(&self, who: &Subject, mut spec: FunctionSpec) -> Result<FunctionSpec, Refusal> {
        if spec.trusted && *who != Subject::admin() {
            return Err(Refusal::new(
                Code::Forbidden,
                "/trusted: only admins of the whole cluster deploy trusted functions, which run as the worker's user; leave it out",
            ));
        }
        if who.namespaces.is_none() || self.config.trust_functions {
            return Ok(spec);
        }
        spec.confined = true;
        let amount = spec.amount().with_gpus(0);
        let gpus: Vec<_> = spec.resources.gpu.iter().filter_map(|gpu| gpu.parse().ok()).collect();
        let fits = async |needs| {
            let asked = Impossible(amount, gpus.clone(), needs);
            self.env.autoscaler.send(asked).await.ok().flatten().is_none()
        };
        if !fits(Needs::Strict).await && fits(Needs::Nothing).await {
            let ready = self.env.registry.workers().into_iter().filter(|(_, entry)| entry.state == WorkerState::Ready);
            let lax = ready.filter(|(_, entry)| !entry.isolation.ground().strict);
            let names: Vec<String> =
                lax.take(8).map(|(id, entry)| format!("{id} ({})", entry.isolation.level.name())).collect();
            return Err(Refusal::new(
                Code::Forbidden,
                format!(
                    "a token of some namespaces deploys functions for workers that keep them wholly apart, and those that fit do not: {}; \
                     `capstan doctor` on them says why, scheduler.trust_functions=true lifts this",
                    names.join(", ")
                ),
            ));
        }
        Ok(spec)
    }

    /// What is odd about a spec that can be deployed here and now: that no worker could hold a container of it, for one.
    pub async fn oddities(&self, spec: &FunctionSpec) -> Vec<String> {
        let resources = &spec.resources;
        let (cpu_milli, memory_mib) = (resources.cpu.milli.into(), resources.memory_mib.into());
        let amount = Amount { cpu_milli, memory_mib, gpus: 0 };
        let gpus = resources.gpu.iter().filter_map(|gpu| gpu.parse().ok()).collect();
        // The autoscaler lives as long as the scheduler.
        let impossible = self.env.autoscaler.send(Impossible(amount, gpus, spec.needs())).await.ok().flatten();
        impossible.map(|why| format!("resources: {why}; its inputs wait")).into_iter().collect()
    }

    /// Deploys a revision. Answers the function, and whether it is new.
    pub async fn deploy(
        &self,
        key: FunctionKey,
        spec: FunctionSpec,
        (if_match, at_once): (Option<u32>, bool),
    ) -> Result<(FunctionView, bool), Refusal> {
        self.deployable(&key, &spec).await?;
        let size = serde_json::to_string(&spec).map_or(0, |text| text.len());
        let spec = Arc::new(spec);
        let _apart = self.locks.of(&key).await;
        // An actor that is just ending is replaced: its function is gone.
        for _ in 0..8 {
            let deploy = Deploy { spec: spec.clone(), if_match, at_once };
            match self.actor_or_new(&key)?.send(deploy).await {
                Ok(Ok(Deployed { deployment, live, new, stats })) => {
                    self.env.registry.resize(&key, size);
                    self.follow(&key).await;
                    let mut told = json!({"revision": deployment.revision.0});
                    if deployment.spec.trusted {
                        told["trusted"] = true.into();
                    }
                    self.env.telemetry.events.tell("deployed", About::function(&key), told);
                    return Ok((view_of(&key, &deployment, live, stats), new));
                }
                Ok(Err(refusal)) => return Err(refusal),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        Err(Refusal::new(Code::Unavailable, "the scheduler is stopping; try again when it is back"))
    }

    /// A function.
    pub async fn function(&self, key: &FunctionKey) -> Result<FunctionView, Refusal> {
        self.ask(key, |core| view_of(core.key(), core.deployment(), core.serving().revision, core.stats())).await
    }

    /// Functions of a namespace by name.
    pub async fn functions(&self, asked: &List) -> FunctionsView {
        let (mut functions, mut bytes) = (Vec::<FunctionView>::new(), 0);
        let keys = self.env.registry.functions().into_iter().map(|(key, _)| key);
        let keys = keys.filter(|key| !parameter::is_instance(key) && *key.namespace == *asked.namespace);
        for key in keys.filter(|key| asked.after.as_deref().is_none_or(|after| &*key.name > after)) {
            if functions.len() >= asked.limit || bytes >= PAGE_BYTES {
                let next = functions.last().map(|last| last.name.clone());
                return FunctionsView { functions, next };
            }
            bytes += self.env.registry.size(&key);
            functions.extend(self.function(&key).await);
        }
        FunctionsView { functions, next: None }
    }

    /// Removes a function; pending inputs end as cancelled.
    pub async fn remove(&self, key: &FunctionKey) -> Result<(), Refusal> {
        self.ask(key, |_| ()).await?;
        let _apart = self.locks.of(key).await;
        let told = self.actor(key)?.send(Tell(Event::Remove)).await;
        told.map_err(|_| self.gone(key))??;
        self.follow(key).await;
        self.env.telemetry.events.tell("removed", About::function(key), json!({}));
        Ok(())
    }

    /// Autoscaler settings.
    pub async fn settings(&self, key: &FunctionKey) -> Result<SettingsView, Refusal> {
        self.ask(key, |core| {
            let (deployed, overrides, effective) = core.settings();
            SettingsView {
                deployed: deployed.clone(),
                overrides: overrides.clone(),
                profiles: core.active_profiles().into_iter().map(str::to_owned).collect(),
                effective: effective.clone(),
                warnings: core.overruled(),
            }
        })
        .await
    }

    /// Whether a patch may be, also of an instance that is not there yet.
    ///
    /// # Errors
    /// What is wrong with it, by field; or there is no such function.
    pub async fn patchable(&self, asked: FunctionKey, patch: &OverridesPatch) -> Result<(), Refusal> {
        let patch = patch.clone();
        match self.find(asked.clone()).await {
            Ok(key) => self.ask(&key, move |core| core.patched(&patch, false).map(drop)).await?,
            Err(refusal) if refusal.code == Code::NotFound && parameter::is_instance(&asked) => {
                self.ask(&parameter::base(&asked), move |core| core.patched(&patch, true).map(drop)).await?
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Changes overrides; answers the complete settings (SPEC §2.2).
    pub async fn patch(&self, key: &FunctionKey, patch: OverridesPatch) -> Result<SettingsView, Refusal> {
        self.ask(key, |_| ()).await?;
        let told = self.actor(key)?.send(Tell(Event::Patch(patch))).await;
        told.map_err(|_| self.gone(key))??;
        let settings = self.settings(key).await?;
        let facts = json!({"overrides": settings.overrides});
        self.env.telemetry.events.tell("override_changed", About::function(key), facts);
        Ok(settings)
    }

    /// Why inputs of a function wait, if they do.
    pub async fn waiting(&self, key: &FunctionKey) -> Result<Option<Waiting>, Refusal> {
        self.ask(key, |core| core.waiting()).await
    }

    /// A function's numbers.
    pub async fn stats(&self, key: &FunctionKey) -> Result<Stats, Refusal> {
        self.ask(key, |core| core.stats()).await
    }

    /// Inputs of a function's ended calls after `after`: when each arrived, and how long it ran. Answers lines, and where
    /// the next page begins if there is one.
    pub async fn recorded(
        self: &Arc<Self>,
        key: &FunctionKey,
        after: Option<CallId>,
    ) -> Result<(String, Option<CallId>), Refusal> {
        let key = key.clone();
        self.reading(move |api| api.read_recorded(&key, after)).await
    }

    fn read_recorded(&self, key: &FunctionKey, after: Option<CallId>) -> Result<(String, Option<CallId>), Refusal> {
        let (mut lines, mut last) = (String::new(), None);
        let after = after.map(layout::ended);
        let store = &self.home(key.place())?.store;
        let page = store.keys(layout::ENDED, after.as_deref(), RECORDED_PAGE, false);
        for call in page.iter().filter_map(|key| layout::call_of(key)) {
            if lines.len() > RECORDED_BYTES {
                // The next page begins behind the last call that is in this one.
                return Ok((lines, last));
            }
            last = Some(call);
            // One that expires meanwhile is passed over.
            let Some(bytes) = store.get(&layout::ended(call)).map_err(store_refusal)? else { continue };
            let stored: StoredCall = stored::decode(&bytes).map_err(store_refusal)?;
            if stored.function != *key {
                continue;
            }
            self.each_outcome(call, |entry| {
                if entry.attempts > 0 {
                    let line = json!({"at": entry.submitted.0 as f64 / 1e6, "run_ms": entry.run_us as f64 / 1e3});
                    lines.push_str(&format!("{line}\n"));
                }
            })?;
        }
        let more = page.last().filter(|_| page.len() == RECORDED_PAGE);
        Ok((lines, more.and_then(|key| layout::call_of(key))))
    }

    /// The latest requests through `/web`, which are not durable, and how long the latest starts of a function's containers
    /// took, as lines of recorded traffic.
    pub async fn recorded_lately(&self, key: &FunctionKey) -> Result<String, Refusal> {
        let line = |what: &'static str| {
            move |(at, us): (Time, u64)| format!("{}\n", json!({"at": at.0 as f64 / 1e6, what: us as f64 / 1e3}))
        };
        let lines = self.ask(key, move |core| {
            core.past_requests().map(line("run_ms")).chain(core.starts().map(line("start_ms"))).collect()
        });
        lines.await
    }

    /// A function's latest decisions.
    pub async fn explain(&self, key: &FunctionKey) -> Result<ExplainView, Refusal> {
        let most = self.config.limits.start_tries;
        self.ask(key, move |core| ExplainView {
            decisions: core.decisions().map(decision_view).collect(),
            scale_to_zero: core.model_view().map(|(rule, active, kept_by)| ScaleToZeroView {
                enable_scale_to_zero: rule.enabled,
                retention_s: rule.retention_ms as f64 / 1000.0,
                decided_by: DecidedBy {
                    enable_scale_to_zero: rule.flag_by.clone(),
                    retention_period: rule.retention_by.clone(),
                },
                last_request: clock::rfc3339(active),
                kept_by: kept_by.map(Into::into),
            }),
            rollout: Some(core.rollout())
                .filter(|rollout| rollout.live != rollout.revision)
                .map(|p| rollout_view(p, most)),
            waiting: core.waiting(),
            stats: core.stats(),
        })
        .await
    }

    /// The life of one input.
    pub async fn explain_input(
        self: &Arc<Self>,
        who: &Subject,
        call: CallId,
        index: u64,
    ) -> Result<InputLife, Refusal> {
        let stored = self.seen_call(who, call).await?;
        let none = || Refusal::new(Code::NotFound, format!("call {call} has no input {index}"));
        if let Some(entry) = self.outcome_of(&stored, index).await? {
            return Ok(ended_life(call, index, &entry));
        }
        let view = self.ask_any(&stored.function, move |core| core.input(call, index)).await.map_err(|_| none())?;
        match view {
            Some(view) => Ok(live_life(call, index, view)),
            None => {
                // It may have ended between the two looks.
                self.flush().await;
                let entry = self.outcome_of(&stored, index).await?.ok_or_else(none)?;
                Ok(ended_life(call, index, &entry))
            }
        }
    }
}

fn view_of(key: &FunctionKey, deployment: &Deployment, live: Revision, stats: Stats) -> FunctionView {
    FunctionView {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        revision: deployment.revision.0,
        live_revision: live.0,
        deployed_at: clock::rfc3339(deployment.at),
        spec: deployment.spec.clone(),
        stats,
        warnings: Vec::new(),
    }
}

/// How far a deployment has come; `most`: starts after which it is said to have failed.
pub(super) fn rollout_view(progress: Progress, most: u32) -> RolloutView {
    RolloutView {
        revision: progress.revision.0,
        live_revision: progress.live.0,
        failed_starts: progress.failed,
        has_failed: progress.failed >= most,
        detail: Some(progress.why).filter(|why| !why.is_empty()),
    }
}

fn decision_view(decision: &Decision) -> DecisionView {
    DecisionView {
        at: clock::rfc3339(decision.at),
        from: decision.from,
        to: decision.to,
        reason: decision.reason.clone(),
        facts: decision.facts,
    }
}

fn step(state: &'static str, at: Time) -> Step {
    Step { state: state.into(), at: clock::rfc3339(at), container: None, why: None }
}

fn ran(at: Time, container: ContainerId) -> Step {
    Step { container: Some(container), ..step("running", at) }
}

/// An input's states until its last attempt: it waited, and each attempt before the last ran and ended.
fn begin(submitted: Time, tries: Option<&Tries>) -> Vec<Step> {
    let mut history = vec![step("pending", submitted)];
    for past in tries.into_iter().flat_map(|t| &t.past) {
        history.push(ran(past.leased, past.container));
        let how = if past.lost { "lost" } else { "attempt_failed" };
        history.push(Step { why: Some(past.why.clone()), ..step(how, past.ended) });
    }
    history
}

/// An input that has just arrived.
fn life(call: CallId, index: u64) -> InputLife {
    InputLife {
        call_id: call,
        index,
        state: "pending".into(),
        attempts: 0,
        container: None,
        worker: None,
        history: Vec::new(),
        run_ms: None,
        error: None,
        waiting: None,
    }
}

fn live_life(call: CallId, index: u64, view: InputView) -> InputLife {
    match view {
        InputView::Pending { submitted, tries, why } => InputLife {
            attempts: tries.as_ref().map_or(0, |t| t.count()),
            history: begin(submitted, tries.as_deref()),
            waiting: Some(why),
            ..life(call, index)
        },
        InputView::Running { submitted, given, tries, container, worker } => {
            let mut history = begin(submitted, tries.as_deref());
            history.push(ran(given, container));
            InputLife {
                state: "running".into(),
                attempts: tries.map_or(0, |t| t.count()) + 1,
                container: Some(container),
                worker: Some(worker),
                history,
                ..life(call, index)
            }
        }
    }
}

fn ended_life(call: CallId, index: u64, entry: &Entry) -> InputLife {
    let (state, error) = match &entry.outcome {
        Outcome::Succeeded(_) => ("succeeded", None),
        Outcome::Failed(failure) => ("failed", Some(capstan_verb::call::error_json(failure))),
        Outcome::Cancelled => ("cancelled", None),
    };
    let mut history = begin(entry.submitted, entry.tries.as_deref());
    let before = entry.tries.as_ref().map_or(0, |t| t.count());
    if entry.attempts > before {
        history.push(ran(entry.leased, entry.container));
    }
    history.push(step(state, entry.finished));
    InputLife {
        state: state.into(),
        attempts: entry.attempts,
        container: (entry.container.0 != 0).then_some(entry.container),
        history,
        run_ms: Some(entry.run_us as f64 / 1000.0),
        error,
        ..life(call, index)
    }
}
