//! What schedulers tell each other of namespaces, so that fair shares and quotas hold for a namespace wherever its functions live.

use super::keeper::{Cluster, LOOK};
use crate::{
    actor::autoscaler::{Summarize, Told},
    clock,
    store::blocking,
};
use capstan_scheduler_core::{
    autoscaler::{Event, Summary},
    ownership::Member,
};
use etcd_client::{GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::sync::CancellationToken;

impl Cluster {
    /// Keeps telling, whatever else the keeper waits for.
    pub(super) async fn keep_sharing(self: Arc<Self>, stop: CancellationToken) {
        let (mut told, mut lease) = (Summary::new(), 0);
        while !stop.is_cancelled() {
            if self.session().lease() != lease {
                // What was told hung on the lease before.
                (told, lease) = (Summary::new(), self.session().lease());
            }
            self.share(&mut told).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Tells the others what namespaces hold and lack here, where that is news, and the autoscaler what the others told.
    /// `before` is what was told last.
    async fn share(&self, before: &mut Summary) {
        let Ok(summary) = self.shared.autoscaler.send(Summarize).await else { return };
        let news = (summary != *before).then(|| serde_json::to_string(&summary).unwrap_or_default());
        let (etcd, lease, name) = (self.etcd.clone(), self.session().lease(), format!("spaces/{}", self.me));
        let read = blocking(move || {
            let put = |told| TxnOp::put(etcd.key(&name), told, Some(PutOptions::new().with_lease(lease)));
            let all = TxnOp::get(etcd.key("spaces/"), Some(GetOptions::new().with_prefix()));
            let answer = etcd.txn(Txn::new().and_then(news.map(put).into_iter().chain([all]).collect::<Vec<_>>()))?;
            let mut told: BTreeMap<Member, Summary> = BTreeMap::new();
            let found = answer.op_responses();
            let Some(TxnOpResponse::Get(found)) = found.last() else { return Ok(told) };
            for kv in found.kvs() {
                let key = String::from_utf8_lossy(kv.key()).into_owned();
                if let (Some(member), Ok(summary)) = (key.rsplit('/').next(), serde_json::from_slice(kv.value())) {
                    told.insert(member.into(), summary);
                }
            }
            Ok(told)
        });
        // One that cannot be asked is asked again with the next look; until then what was told last holds.
        let Ok(mut told) = read.await else { return };
        *before = summary;
        told.remove(&self.me);
        let event = Event::Elsewhere { me: self.me.clone(), now: clock::now(), told };
        let _ = self.shared.autoscaler.send(Told(event)).await;
    }
}
