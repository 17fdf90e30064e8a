//! What operators set for many functions at once: namespaces' weights and quotas, scaling models to zero; and schedules.

use super::Api;
use crate::{
    actor::{
        autoscaler::{Governed, Space, Spaces, Told},
        function::{Reconfigured, Tell},
    },
    clock,
    store::{Change, layout, store_refusal, stored},
    telemetry::events::About,
    zero_config::{ZeroConfig, ZeroText, zero_of},
};
use capstan_common::{
    id::{CallId, FunctionKey},
    refusal::{Code, Refusal},
    resource::Amount,
    validate,
};
use capstan_scheduler_core::{
    autoscaler::{self, Policy},
    event::Event,
    function::{self, call_of},
    scale_to_zero::Warning,
};
use capstan_verb::{
    function::ScheduleView,
    namespace::{NamespaceView, QuotaView, UsedView},
};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};

impl Api {
    /// The scale-to-zero configuration.
    pub fn scale_to_zero(&self) -> Arc<ZeroConfig> {
        self.env.zero.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces it; functions with a model hear what holds for them. Entries that cannot hold are left out with a warning.
    pub async fn set_scale_to_zero(&self, data: Map<String, Value>) -> Result<Arc<ZeroConfig>, Refusal> {
        self.must_have_room_anywhere()?;
        // Read before it is stored: what could not be read back would be in the way of every later start.
        let read = data.clone();
        let config = tokio::task::spawn_blocking(move || ZeroConfig::read(read)).await;
        let config = config.map_err(|_| Refusal::new(Code::Internal, "the configuration could not be read"))?;
        let text = Value::Object(data).to_string();
        let change = Change::Put(layout::ZERO.into(), stored::encode(&ZeroText(text)));
        self.env.globals.write(vec![change]).await.map_err(store_refusal)?;
        Ok(self.hold_zero(config).await)
    }

    /// Another scheduler has replaced it.
    pub async fn adopt_zero(&self, value: &[u8]) {
        let Some(data) = zero_of(value) else { return };
        if self.scale_to_zero().data != data {
            self.hold_zero(ZeroConfig::read(data)).await;
        }
    }

    async fn hold_zero(&self, config: ZeroConfig) -> Arc<ZeroConfig> {
        let config = Arc::new(config);
        for Warning { entry, detail } in &config.warnings {
            tracing::warn!(entry, detail, "an entry of the scale-to-zero configuration needs mending");
        }
        tracing::info!(entries = config.config.entries().len(), "the scale-to-zero configuration was replaced");
        *self.env.zero.write().unwrap_or_else(std::sync::PoisonError::into_inner) = config.clone();
        self.env.telemetry.events.tell(
            "scale_to_zero_configured",
            About::cluster(),
            json!({"entries": config.config.entries().len()}),
        );
        for (_, function) in self.env.registry.functions() {
            // A function that is gone has no model.
            let _ = function.send(Reconfigured).await;
        }
        config
    }

    /// Namespaces with their policies and what they hold, by name.
    pub async fn namespaces(&self) -> Vec<NamespaceView> {
        let known = self.env.autoscaler.send(Spaces).await.unwrap_or_default();
        let view =
            |space: Space| (space.name.clone(), namespace_view(&space.name, &space.policy, space.held, space.used));
        let mut names: BTreeMap<Arc<str>, NamespaceView> = known.into_iter().map(view).collect();
        let functions = self.env.registry.functions().into_iter().map(|(key, _)| key.namespace);
        for name in functions.chain(["default".into()]) {
            names.entry(name.clone()).or_insert_with(|| unused(&name));
        }
        names.into_values().collect()
    }

    /// One namespace; each exists as soon as it is named.
    pub async fn namespace(&self, name: &str) -> Result<NamespaceView, Refusal> {
        validate::function_key(name, "any")?;
        let found = self.namespaces().await.into_iter().find(|view| *view.name == *name);
        Ok(found.unwrap_or_else(|| unused(name)))
    }

    /// Sets a namespace's weight and quota.
    pub async fn govern(&self, name: &str, policy: Policy) -> Result<NamespaceView, Refusal> {
        validate::function_key(name, "any")?;
        if !(1..=1000).contains(&policy.weight) {
            return Err(Refusal::field("weight", format!("must be from 1 to 1000, is {}", policy.weight)));
        }
        self.must_have_room_anywhere()?;
        let change = Change::Put(layout::namespace(name), stored::encode(&policy));
        self.env.globals.write(vec![change]).await.map_err(store_refusal)?;
        self.hold_namespace(name, policy).await;
        self.namespace(name).await
    }

    /// Another scheduler has set it.
    pub async fn adopt_namespace(&self, name: &str, value: &[u8]) {
        match stored::decode(value) {
            Ok(policy) => self.hold_namespace(name, policy).await,
            Err(error) => tracing::error!(namespace = name, %error, "a namespace's stored policy cannot be read"),
        }
    }

    async fn hold_namespace(&self, name: &str, policy: Policy) {
        let governed = autoscaler::Event::Governed { namespace: name.into(), policy };
        // The autoscaler lives as long as the scheduler.
        let _ = self.env.autoscaler.send(Told(governed)).await;
    }

    /// A function's schedule.
    pub async fn schedule(&self, key: &FunctionKey) -> Result<ScheduleView, Refusal> {
        let view = self.ask(key, |core| core.schedule_view()).await?;
        view.map(schedule_view).ok_or_else(|| no_schedule(key))
    }

    /// Pauses a schedule, or lets it go on.
    pub async fn pause_schedule(&self, key: &FunctionKey, paused: bool) -> Result<ScheduleView, Refusal> {
        let told = self.actor(key)?.send(Tell(Event::Pause(paused))).await;
        told.map_err(|_| self.gone(key))??;
        self.schedule(key).await
    }

    /// Runs a schedule's input now, whatever its times.
    pub async fn run_schedule(&self, key: &FunctionKey) -> Result<CallId, Refusal> {
        let view = self.ask(key, |core| core.schedule_view()).await?.ok_or_else(|| no_schedule(key))?;
        let input = view.schedule.input.line().into();
        // An id as its due times have it: the schedule knows the run as one of its own.
        self.spawn_as(call_of(key, clock::now()), key, input, &Default::default()).await
    }
}

fn no_schedule(key: &FunctionKey) -> Refusal {
    Refusal::new(Code::NotFound, format!("function `{key}` has no schedule; deploy it with one"))
}

/// A namespace of which nothing is known but its name.
fn unused(name: &str) -> NamespaceView {
    namespace_view(name, &Policy::default(), 0, Amount::default())
}

fn namespace_view(name: &str, policy: &Policy, held: u32, used: Amount) -> NamespaceView {
    let quota = policy.quota;
    NamespaceView {
        name: name.into(),
        weight: policy.weight,
        quota: QuotaView {
            containers: quota.containers,
            cpu: quota.cpu_milli.map(|milli| milli as f64 / 1000.0),
            memory_mib: quota.memory_mib,
            gpus: quota.gpus,
        },
        used: UsedView {
            containers: held,
            cpu: used.cpu_milli as f64 / 1000.0,
            memory_mib: used.memory_mib,
            gpus: used.gpus,
        },
    }
}

fn schedule_view(view: function::ScheduleView) -> ScheduleView {
    ScheduleView {
        schedule: view.schedule,
        paused: view.paused,
        last: view.last.map(clock::rfc3339),
        next: view.next.into_iter().map(clock::rfc3339).collect(),
        waiting: view.waiting,
        running: view.running,
    }
}

impl Governed {
    /// A namespace whose policy was stored.
    pub fn event((namespace, policy): (String, Policy)) -> autoscaler::Event {
        autoscaler::Event::Governed { namespace: namespace.as_str().into(), policy }
    }
}
