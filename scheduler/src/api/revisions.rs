//! Revisions: those that are kept, and the way back to one of them.

use super::Api;
use crate::{
    clock,
    route::{Granted, Run},
    store::{
        layout::{self, StoredFunction},
        store_refusal, stored,
    },
    telemetry::events::About,
};
use capstan_common::{
    id::FunctionKey,
    refusal::{Code, Refusal},
};
use capstan_scheduler_core::record::Deployment;
use capstan_verb::{
    access::Role,
    function::{DeployedView, RevisionView, Revisions, RevisionsView, Rollback},
};
use serde_json::json;
use std::sync::Arc;

impl Api {
    /// The revisions that are kept, the newest first, and the numbers of the latest and of the one that serves.
    async fn revisions(self: &Arc<Self>, key: &FunctionKey) -> Result<(Vec<Deployment>, (u32, u32)), Refusal> {
        let (live, serves) = self.ask(key, |core| (core.deployment().clone(), core.serving().revision.0)).await?;
        let of = key.clone();
        let mut kept = self.reading(move |api| api.read_revisions(&of)).await?;
        // One that an older version deployed is not among them, and one that was just deployed may not be yet.
        if !kept.iter().any(|one| one.revision == live.revision) {
            kept.push(live.clone());
        }
        kept.sort_by_key(|one| std::cmp::Reverse(one.revision));
        Ok((kept, (live.revision.0, serves)))
    }

    fn read_revisions(&self, key: &FunctionKey) -> Result<Vec<Deployment>, Refusal> {
        let store = &self.home(key.place())?.store;
        let keys = store.keys(&layout::revisions(key), None, usize::MAX, false);
        let values = keys.iter().filter_map(|key| store.get(key).transpose());
        let read = |value: Result<bytes::Bytes, _>| {
            let stored: StoredFunction = stored::decode(&value.map_err(store_refusal)?).map_err(store_refusal)?;
            stored.read().map(|(deployed, _)| deployed).map_err(store_refusal)
        };
        values.map(read).collect()
    }

    /// Deploys what an earlier revision was: as a deployment of the same spec, with all that is checked of one.
    async fn roll_back(self: &Arc<Self>, ask: &Granted<Rollback>) -> Result<DeployedView, Refusal> {
        let Rollback { key, revision, before, at_once } = &ask.verb;
        let key = self.find(key.clone()).await?;
        let (kept, (live, serves)) = self.revisions(&key).await?;
        let wanted = match revision {
            Some(number) => kept.iter().find(|one| one.revision.0 == *number),
            // Where the latest has not taken over, the way back is to the one that serves.
            None => kept.iter().find(|one| one.revision.0 < live && (serves == live || one.revision.0 <= serves)),
        };
        let Some(wanted) = wanted else {
            let others: Vec<String> = kept.iter().map(|one| one.revision.0.to_string()).collect();
            let what = revision.map_or("there is no revision before the live one".into(), |number| {
                format!("revision {number} of function `{key}` is not kept")
            });
            let detail = format!("{what}; kept are {}", others.join(", "));
            return Err(Refusal::new(Code::NotFound, detail));
        };
        let spec = self.entrusted(&ask.who, (*wanted.spec).clone()).await?;
        let expected = self.must_be(&key, before).await?;
        let odd = self.oddities(&spec).await;
        // Between the look and the deployment nothing else may become live.
        let (mut function, new) = self.deploy(key.clone(), spec, (expected.or(Some(live)), *at_once)).await?;
        function.warnings = odd;
        let facts = json!({"to": wanted.revision.0, "revision": function.revision});
        self.telemetry().events.tell("rolled_back", About::function(&key), facts);
        Ok(DeployedView { function, new })
    }
}

impl Run<Revisions> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<Revisions>) -> Result<RevisionsView, Refusal> {
        let (kept, (_, live)) = self.revisions(&self.find(ask.verb.key.clone()).await?).await?;
        let view = |Deployment { revision, mut spec, at }| {
            if ask.who.role < Role::Deploy {
                Arc::make_mut(&mut spec).hide_env();
            }
            RevisionView { revision: revision.0, deployed_at: clock::rfc3339(at), live: revision.0 == live, spec }
        };
        Ok(RevisionsView { revisions: kept.into_iter().map(view).collect() })
    }
}

impl Run<Rollback> for Api {
    async fn run(self: &Arc<Self>, ask: Granted<Rollback>) -> Result<DeployedView, Refusal> {
        let api = self.clone();
        super::writes::to_its_end(async move { api.roll_back(&ask).await }).await
    }
}
