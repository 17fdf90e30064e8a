//! Instances of functions with parameters: found by their values, made on first use, deployed and removed with their function.

use super::{Api, no_function};
use crate::actor::function::{Deploy, FunctionActor, Pass, Tell};
use actix::{Actor, Addr};
use capstan_common::{
    function::FunctionSpec,
    id::FunctionKey,
    parameter,
    refusal::{Code, Refusal},
};
use capstan_scheduler_core::event::Event;
use capstan_verb::function::FunctionView;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};
use tokio::sync::{Mutex, MutexGuard};

/// How often an instance that goes at this moment is made again.
const TRIES: u32 = 8;
/// Locks that functions share.
const LOCKS: usize = 64;

/// Keeps a function's deployments and the making of its instances apart: no instance is made of a spec that is being replaced.
pub(super) struct Locks(Vec<Mutex<()>>);

impl Default for Locks {
    fn default() -> Self {
        Self((0..LOCKS).map(|_| Mutex::default()).collect())
    }
}

impl Locks {
    pub(super) async fn of(&self, key: &FunctionKey) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        key.name.split(parameter::SEPARATOR).next().hash(&mut hasher);
        self.0[hasher.finish() as usize % LOCKS].lock().await
    }
}

impl Api {
    /// The function or instance that a name asks for. An instance that is not there is made.
    pub async fn resolve(&self, asked: FunctionKey) -> Result<FunctionKey, Refusal> {
        if !parameter::is_instance(&asked) {
            return Ok(asked);
        }
        for _ in 0..TRIES {
            let (key, spec) = self.bound(&asked).await?;
            if !parameter::is_instance(&key) {
                return Ok(key);
            }
            if self.touch(&key).await {
                return Ok(key);
            }
            let _apart = self.locks.of(&key).await;
            // The spec may have been replaced while another deployment had the lock.
            let (key, spec) = if self.bound(&asked).await?.1 == spec { (key, spec) } else { continue };
            self.make(&key, spec).await?;
            if self.touch(&key).await {
                return Ok(key);
            }
        }
        Err(Refusal::new(Code::Unavailable, "the instance is being removed; try again"))
    }

    /// The same without making one: it is only looked at.
    pub async fn find(&self, asked: FunctionKey) -> Result<FunctionKey, Refusal> {
        if !parameter::is_instance(&asked) {
            return Ok(asked);
        }
        let (key, _) = self.bound(&asked).await?;
        if self.ask(&key, |_| ()).await.is_err() {
            let detail = format!("instance `{}` is not in use: it is made when it is first called", key.name);
            return Err(Refusal::new(Code::NotFound, detail));
        }
        Ok(key)
    }

    async fn bound(&self, asked: &FunctionKey) -> Result<(FunctionKey, FunctionSpec), Refusal> {
        let spec = self.ask(&parameter::base(asked), |core| core.deployment().spec.clone()).await?;
        parameter::bind(asked, &spec)
    }

    /// Whether it is there; if so it stays for a while.
    async fn touch(&self, key: &FunctionKey) -> bool {
        match self.env.registry.function(key) {
            Some(actor) => matches!(actor.send(Pass(Event::Touch)).await, Ok(Ok(()))),
            None => false,
        }
    }

    async fn make(&self, key: &FunctionKey, spec: FunctionSpec) -> Result<(), Refusal> {
        let base = parameter::base(key);
        let (most, has) = (self.config.limits.instances, self.env.registry.instances(&base).len());
        if has >= most {
            let detail =
                format!("function `{base}` has {has} instances and takes at most {most}; idle ones go after a while");
            return Err(Refusal::exhausted(detail, 10));
        }
        self.must_have_room(key.place())?;
        let actor = self.actor_or_new(key)?;
        // An actor that is just ending is replaced by the next try.
        let deployed = actor.send(Deploy { spec: Arc::new(spec), if_match: None, at_once: false }).await;
        deployed.map_or(Ok(()), |deployed| deployed.map(drop))
    }

    /// A function's actor, made if there is none.
    pub(super) fn actor_or_new(&self, key: &FunctionKey) -> Result<Addr<FunctionActor>, Refusal> {
        let (owner, env, on) = (key.clone(), self.home(key.place())?, self.env.functions.clone());
        let start = || FunctionActor::start_in_arbiter(&on, move |_| FunctionActor::new(owner, env, None));
        Ok(self.env.registry.function_or(key, start))
    }

    /// Instances follow their function: they get its new spec, or go with it. One that its values do not lead to any more
    /// (a default was changed, a parameter is gone) finishes what it has accepted, and goes.
    pub(super) async fn follow(&self, base: &FunctionKey) {
        if parameter::is_instance(base) {
            return;
        }
        let spec = self.ask(base, |core| core.deployment().spec.clone()).await.ok();
        for (key, actor) in self.env.registry.instances(base) {
            // One that has just gone follows nobody.
            let Ok(own) = self.ask(&key, |core| core.deployment().spec.clone()).await else { continue };
            let Some(spec) = &spec else {
                drop(actor.send(Tell(Event::Remove)).await);
                continue;
            };
            let wanted = match parameter::bind(&key, spec) {
                Ok((name, bound)) if name == key => bound,
                _ => leaving(&own),
            };
            if *own != wanted {
                drop(actor.send(Deploy { spec: Arc::new(wanted), if_match: None, at_once: false }).await);
            }
        }
    }

    /// After a restart: what a crash kept from following follows now.
    pub async fn follow_all(&self) {
        self.follow_these(self.env.registry.functions().into_iter().map(|(key, _)| key).collect()).await;
    }

    /// The same for some.
    pub async fn follow_these(&self, functions: Vec<FunctionKey>) {
        let mut bases: Vec<FunctionKey> =
            functions.into_iter().filter(parameter::is_instance).map(|key| parameter::base(&key)).collect();
        bases.dedup();
        for base in bases {
            self.follow(&base).await;
        }
    }

    /// A function's instances, by name.
    pub async fn instances(&self, key: &FunctionKey) -> Result<Vec<FunctionView>, Refusal> {
        self.ask(key, |_| ()).await.map_err(|_| no_function(key))?;
        let mut views = Vec::new();
        for (key, _) in self.env.registry.instances(key) {
            views.extend(self.function(&key).await);
        }
        Ok(views)
    }
}

/// The spec of an instance that is to go when it has finished: nothing keeps it.
fn leaving(own: &FunctionSpec) -> FunctionSpec {
    let mut spec = FunctionSpec { profiles: Vec::new(), model_id: None, activity: None, ..own.clone() };
    spec.autoscaler.min_containers = 0;
    spec
}
