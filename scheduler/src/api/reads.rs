//! What may be looked at, verb by verb. Rights and owners are the route's; here a record's own namespace is compared, and nothing is
//! shown beyond what who asks may see.

use super::{Api, models::Series};
use crate::route::{Granted, Run};
use capstan_common::{
    refusal::{Code, Refusal},
    stats::Stats,
    wire::{OLDEST_PROTOCOL, PROTOCOL},
};
use capstan_verb::{
    access::{Role, Subject},
    call::{self, CallView, CallsView, InputLife},
    cluster::{self, LinkVersions, NodesView, SchedulersView, VersionView, WorkerView, WorkersView},
    container::{self, ContainersView, StoppingView},
    function::{
        self, ActiveView, ExplainView, FunctionView, FunctionsView, InstancesView, ScalingView, ScheduleView,
        SettingsView,
    },
    model::{self, Gauge, GaugesView, ServingView, Vector},
    namespace::{self, NamespaceView, NamespacesView},
};
use std::{sync::Arc, time::Duration};

/// A function as this subject may see it: values of its environment may be secrets.
fn shown(mut function: FunctionView, who: &Subject) -> FunctionView {
    if who.role < Role::Deploy {
        Arc::make_mut(&mut function.spec).hide_env();
    }
    function
}

impl Run<function::Get> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Get>) -> Result<FunctionView, Refusal> {
        let key = self.find(ask.verb.key).await?;
        Ok(shown(self.function(&key).await?, &ask.who))
    }
}

impl Run<function::List> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::List>) -> Result<FunctionsView, Refusal> {
        let FunctionsView { functions, next } = self.functions(&ask.verb).await;
        let functions = functions.into_iter().map(|function| shown(function, &ask.who)).collect();
        Ok(FunctionsView { functions, next })
    }
}

impl Run<function::Settings> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Settings>) -> Result<SettingsView, Refusal> {
        self.settings(&self.find(ask.verb.key).await?).await
    }
}

impl Run<function::GetStats> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::GetStats>) -> Result<Stats, Refusal> {
        self.stats(&self.find(ask.verb.key).await?).await
    }
}

impl Run<function::Explain> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Explain>) -> Result<ExplainView, Refusal> {
        self.explain(&self.find(ask.verb.key).await?).await
    }
}

impl Run<function::Instances> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Instances>) -> Result<InstancesView, Refusal> {
        let instances = self.instances(&ask.verb.key).await?;
        Ok(InstancesView { instances: instances.into_iter().map(|instance| shown(instance, &ask.who)).collect() })
    }
}

impl Run<function::Scaling> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Scaling>) -> Result<ScalingView, Refusal> {
        self.scaling(&self.find(ask.verb.key).await?).await
    }
}

impl Run<function::AwaitActive> for Api {
    async fn run(self: &Arc<Self>, mut ask: Granted<function::AwaitActive>) -> Result<ActiveView, Refusal> {
        ask.waits();
        let function::AwaitActive { key, known, wait_ms } = ask.verb;
        let key = self.find(key).await?;
        Ok(ActiveView { active: self.await_active(&key, known, Duration::from_millis(wait_ms)).await? })
    }
}

impl Run<function::RequiredNodes> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::RequiredNodes>) -> Result<NodesView, Refusal> {
        let key = self.find(ask.verb.key).await?;
        Ok(NodesView { nodes: self.required_nodes(Some(&key), ask.verb.node).await? })
    }
}

impl Run<cluster::RequiredNodes> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<cluster::RequiredNodes>) -> Result<NodesView, Refusal> {
        Ok(NodesView { nodes: self.required_nodes(None, ask.verb.node).await? })
    }
}

impl Run<model::Serving> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<model::Serving>) -> Result<ServingView, Refusal> {
        let model::Serving { namespace, model_id } = ask.verb;
        let none = || {
            let detail = format!("no function of namespace `{namespace}` has the model_id `{model_id}`");
            Refusal::new(Code::NotFound, detail)
        };
        Ok(ServingView { key: self.serving(&namespace, &model_id).await.ok_or_else(none)? })
    }
}

impl Run<function::Schedule> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<function::Schedule>) -> Result<ScheduleView, Refusal> {
        self.schedule(&self.find(ask.verb.key).await?).await
    }
}

impl Run<call::Get> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<call::Get>) -> Result<CallView, Refusal> {
        self.call(&ask.who, ask.verb.call).await
    }
}

impl Run<call::List> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<call::List>) -> Result<CallsView, Refusal> {
        self.calls(&ask.who, &ask.verb).await
    }
}

impl Run<call::ExplainInput> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<call::ExplainInput>) -> Result<InputLife, Refusal> {
        self.explain_input(&ask.who, ask.verb.call, ask.verb.index).await
    }
}

impl Run<container::List> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<container::List>) -> Result<ContainersView, Refusal> {
        Ok(self.containers(&ask.who, &ask.verb).await)
    }
}

impl Run<container::Stop> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<container::Stop>) -> Result<StoppingView, Refusal> {
        let id = ask.verb.container;
        self.stop_container(&ask.who, id).await?;
        Ok(StoppingView { id, state: "stopping".into() })
    }
}

impl Run<cluster::Schedulers> for Api {
    async fn run(self: &Arc<Self>, _: Granted<cluster::Schedulers>) -> Result<SchedulersView, Refusal> {
        Ok(self.schedulers())
    }
}

impl Run<cluster::Version> for Api {
    async fn run(self: &Arc<Self>, _: Granted<cluster::Version>) -> Result<VersionView, Refusal> {
        Ok(VersionView {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: option_env!("CAPSTAN_REVISION").unwrap_or_default().into(),
            api: "v1".into(),
            link: LinkVersions { min: OLDEST_PROTOCOL, max: PROTOCOL },
        })
    }
}

impl Run<cluster::Workers> for Api {
    async fn run(self: &Arc<Self>, _: Granted<cluster::Workers>) -> Result<WorkersView, Refusal> {
        Ok(self.workers().await)
    }
}

impl Run<cluster::Worker> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<cluster::Worker>) -> Result<WorkerView, Refusal> {
        self.worker(&ask.verb.name).await
    }
}

impl Run<namespace::Get> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<namespace::Get>) -> Result<NamespaceView, Refusal> {
        self.namespace(&ask.verb.namespace).await
    }
}

impl Run<namespace::List> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<namespace::List>) -> Result<NamespacesView, Refusal> {
        let mut namespaces = self.namespaces().await;
        namespaces.retain(|namespace| ask.who.sees(&namespace.name));
        Ok(NamespacesView { namespaces })
    }
}

impl Run<model::Query> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<model::Query>) -> Result<Vector, Refusal> {
        self.promql(&ask.verb.query, ask.verb.time.as_deref()).await
    }
}

impl Run<model::Gauges> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<model::Gauges>) -> Result<GaugesView, Refusal> {
        let of_namespace = |series: &Series| series.labels.get("namespace") == Some(&ask.verb.namespace);
        let gauge = |series: Series| Gauge {
            name: series.name.into(),
            labels: series.labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            value: series.value,
        };
        let gauges = self.model_series().await.into_iter().filter(of_namespace).map(gauge).collect();
        Ok(GaugesView { gauges })
    }
}
