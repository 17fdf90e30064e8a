//! What changes something, verb by verb. Rights and owners are the route's.

use super::Api;
use crate::route::{Granted, Run};
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
    validate,
    worker::WorkerState,
};
use capstan_scheduler_core::autoscaler::{Policy, Quota};
use capstan_verb::{
    Done,
    call::{self, CallView, SpawnedView},
    cluster::{self, InvitationView, RevokedView},
    function::{self, CheckedView, DeployedView, Precondition, RolloutView, ScheduleView, SettingsView},
    model::{self, EffectiveView, ScaleToZeroView},
    namespace::{self, NamespaceView},
    secret::{self, SecretsView, SetView, UsersView},
    token::{self, TokenView, TokensView},
};
use std::{sync::Arc, time::Duration};

/// Does what must not stop halfway when who asked goes: instances follow their function one by one.
pub(super) async fn to_its_end<T: 'static>(
    work: impl Future<Output = Result<T, Refusal>> + 'static,
) -> Result<T, Refusal> {
    let stopping = |_| Refusal::new(Code::Unavailable, "the scheduler is stopping; try again when it is back");
    actix::spawn(work).await.map_err(stopping)?
}

/// Cores, as they are written, in thousandths.
fn cores(cpu: Option<f64>) -> Result<Option<u64>, Refusal> {
    match cpu {
        Some(cpu) if !(0.0..=1e6).contains(&cpu) => {
            let detail = format!("must be a number of cores from 0 to 1000000, is {cpu:e}");
            Err(Refusal::field("quota/cpu", detail))
        }
        cpu => Ok(cpu.map(|cpu| (cpu * 1000.0).round() as u64)),
    }
}

impl Api {
    /// Holds a precondition against what is live. A deploy, for which the number counts, checks it once more where it cannot change
    /// in between.
    pub(super) async fn must_be(&self, key: &FunctionKey, before: &Precondition) -> Result<Option<u32>, Refusal> {
        if *before == Precondition::default() {
            return Ok(None);
        }
        let live = self.function(key).await.ok().map(|function| function.revision);
        match before.broken(live) {
            Some(detail) => Err(Refusal::new(Code::PreconditionFailed, detail)),
            None => Ok(live.filter(|_| before.one_of.is_some())),
        }
    }

    fn scale_to_zero_view(&self) -> ScaleToZeroView {
        let config = self.scale_to_zero();
        let warnings = config.warnings.iter().map(|warning| format!("{}: {}", warning.entry, warning.detail));
        ScaleToZeroView { data: config.data.clone(), warnings: warnings.collect() }
    }
}

impl Run<function::Deploy> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Deploy>) -> Result<DeployedView, Refusal> {
        let api = self.clone();
        to_its_end(async move {
            let function::Deploy { key, spec, before, at_once, require_capacity } = ask.verb.clone();
            let spec = api.entrusted(&ask.who, spec).await?;
            let expected = api.must_be(&key, &before).await?;
            let odd = api.oddities(&spec).await;
            if let Some(odd) = odd.first().filter(|_| require_capacity) {
                return Err(Refusal::new(
                    Code::Unsupported,
                    format!("{odd}: nothing was deployed, as require_capacity asks"),
                ));
            }
            let (mut function, new) = api.deploy(key, spec, (expected, at_once)).await?;
            function.warnings = odd;
            Ok(DeployedView { function, new })
        })
        .await
    }
}

impl Run<function::AwaitDeployed> for Api {
    async fn run(self: &Arc<Self>, mut ask: Granted<function::AwaitDeployed>) -> Result<RolloutView, Refusal> {
        ask.waits();
        let function::AwaitDeployed { key, revision, wait_ms } = ask.verb;
        self.await_deployed(&key, revision, Duration::from_millis(wait_ms)).await
    }
}

impl Run<function::Check> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Check>) -> Result<CheckedView, Refusal> {
        let function::Check { key, spec, before } = ask.verb;
        let spec = self.entrusted(&ask.who, spec).await?;
        self.must_be(&key, &before).await?;
        self.deployable(&key, &spec).await?;
        let warnings = self.oddities(&spec).await;
        Ok(CheckedView { dry_run: true, spec, warnings })
    }
}

impl Run<function::Patch> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Patch>) -> Result<SettingsView, Refusal> {
        let function::Patch { key, patch, before } = ask.verb;
        // A patch that is refused makes no instance.
        self.patchable(key.clone(), &patch).await?;
        let key = self.resolve(key).await?;
        self.function(&key).await?;
        self.must_be(&key, &before).await?;
        self.patch(&key, patch).await
    }
}

impl Run<function::Remove> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Remove>) -> Result<Done, Refusal> {
        let api = self.clone();
        to_its_end(async move {
            let key = api.find(ask.verb.key.clone()).await?;
            api.function(&key).await?;
            api.must_be(&key, &ask.verb.before).await?;
            api.remove(&key).await?;
            Ok(Done {})
        })
        .await
    }
}

impl Run<function::PauseSchedule> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::PauseSchedule>) -> Result<ScheduleView, Refusal> {
        self.pause_schedule(&ask.verb.key, ask.verb.paused).await
    }
}

impl Run<function::RunSchedule> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::RunSchedule>) -> Result<SpawnedView, Refusal> {
        let call_id = self.run_schedule(&ask.verb.key).await?;
        Ok(SpawnedView { call_id })
    }
}

impl Run<call::Cancel> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<call::Cancel>) -> Result<CallView, Refusal> {
        self.cancel(&ask.who, ask.verb.call).await
    }
}

impl Run<namespace::Set> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<namespace::Set>) -> Result<NamespaceView, Refusal> {
        let namespace::Set { namespace, weight, quota } = ask.verb;
        let cpu_milli = cores(quota.cpu)?;
        let quota = Quota { containers: quota.containers, cpu_milli, memory_mib: quota.memory_mib, gpus: quota.gpus };
        self.govern(&namespace, Policy { weight, quota }).await
    }
}

impl Run<cluster::TurnWorker> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<cluster::TurnWorker>) -> Result<Done, Refusal> {
        let cluster::TurnWorker { name, state } = ask.verb;
        if state == WorkerState::Unreachable {
            return Err(Refusal::field("state", "must be draining or ready"));
        }
        self.turn_worker(&name, state).await?;
        Ok(Done {})
    }
}

impl Run<cluster::RevokeWorker> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<cluster::RevokeWorker>) -> Result<RevokedView, Refusal> {
        let known = self.revoke_worker(&ask.verb.name).await?;
        Ok(RevokedView { id: ask.verb.name, revoked: true, known })
    }
}

impl Run<cluster::Invite> for Api {
    async fn run(self: &Arc<Self>, _: Granted<cluster::Invite>) -> Result<InvitationView, Refusal> {
        Ok(InvitationView { join_token: self.invite().await?, good_for_s: 600 })
    }
}

impl Run<model::ScaleToZero> for Api {
    async fn run(self: &Arc<Self>, _: Granted<model::ScaleToZero>) -> Result<ScaleToZeroView, Refusal> {
        Ok(self.scale_to_zero_view())
    }
}

impl Run<model::SetScaleToZero> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<model::SetScaleToZero>) -> Result<ScaleToZeroView, Refusal> {
        self.set_scale_to_zero(ask.verb.data).await?;
        Ok(self.scale_to_zero_view())
    }
}

impl Run<model::Effective> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<model::Effective>) -> Result<EffectiveView, Refusal> {
        let found = self.scale_to_zero().effective(&ask.verb.model_id, &ask.verb.namespace);
        Ok(EffectiveView {
            enable_scale_to_zero: found.enable_scale_to_zero,
            retention_period: found.retention_period,
            decided_by: function::DecidedBy {
                enable_scale_to_zero: found.decided_by.enable_scale_to_zero.as_str().into(),
                retention_period: found.decided_by.retention_period.as_str().into(),
            },
        })
    }
}

impl Run<token::List> for Api {
    async fn run(self: &Arc<Self>, _: Granted<token::List>) -> Result<TokensView, Refusal> {
        Ok(TokensView { tokens: self.tokens() })
    }
}

impl Run<token::Make> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<token::Make>) -> Result<TokenView, Refusal> {
        self.make_token(ask.verb).await
    }
}

impl Run<token::Revoke> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<token::Revoke>) -> Result<Done, Refusal> {
        self.revoke_token(&ask.verb.id).await?;
        Ok(Done {})
    }
}

impl Run<secret::List> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<secret::List>) -> Result<SecretsView, Refusal> {
        validate::function_key(&ask.verb.namespace, "any")?;
        Ok(SecretsView { secrets: self.secrets(&ask.verb.namespace) })
    }
}

impl Run<secret::Set> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<secret::Set>) -> Result<SetView, Refusal> {
        let secret::Set { namespace, name, values } = ask.verb;
        self.set_secret(&namespace, &name, values).await
    }
}

impl Run<secret::Users> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<secret::Users>) -> Result<UsersView, Refusal> {
        Ok(UsersView { functions: self.users_of_secret(&ask.verb.namespace, &ask.verb.name).await })
    }
}

impl Run<secret::Remove> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<secret::Remove>) -> Result<Done, Refusal> {
        self.remove_secret(&ask.verb.namespace, &ask.verb.name).await?;
        Ok(Done {})
    }
}
