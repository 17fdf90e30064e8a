//! Fills etcd until it takes nothing more (NOSPACE), and empties it again as an operator would: delete, compact, defragment, disarm.

use anyhow::{Context, Result, bail};
use capstan_scheduler::store::etcd::{Etcd, EtcdConfig, Trouble};
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions, DeleteOptions};
use std::time::{Duration, Instant};

/// What chaos gives etcd to fill.
pub const QUOTA_BYTES: u64 = 128 << 20;
/// One value; etcd takes 1.5 MiB at once.
const PIECE_BYTES: usize = 1 << 20;
/// How long filling, and emptying, may take.
const MOST: Duration = Duration::from_secs(60);

fn connect(endpoints: Vec<String>) -> Result<Etcd> {
    let config = EtcdConfig { endpoints, prefix: "/fill/".into(), request_ms: 10_000, ..EtcdConfig::default() };
    Ok(Etcd::connect(&config)?)
}

/// Writes until there is no room. Blocks.
pub fn fill(urls: Vec<String>) -> Result<()> {
    let (etcd, begun) = (connect(urls)?, Instant::now());
    for n in 0.. {
        let key = etcd.key(&n.to_string());
        match etcd.run(async move |mut client| client.put(key, vec![b'x'; PIECE_BYTES], None).await) {
            Err(Trouble::Full) => return Ok(()),
            _ if begun.elapsed() > MOST => bail!("etcd does not become full"),
            _ => {}
        }
    }
    Ok(())
}

/// Makes room again. Blocks.
pub fn empty(urls: &[String]) -> Result<()> {
    let (etcd, begun) = (connect(urls.to_vec())?, Instant::now());
    let prefix = etcd.key("");
    loop {
        let tried = try_to_empty(&etcd, &prefix, urls);
        match tried {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > MOST => return Err(error).context("etcd does not become empty"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn told<T>(answer: Result<T, Trouble>) -> Result<T> {
    answer.map_err(|trouble| anyhow::anyhow!("{trouble}"))
}

fn try_to_empty(etcd: &Etcd, prefix: &str, urls: &[String]) -> Result<()> {
    let all = prefix.to_owned();
    let deleting =
        async move |mut client: etcd_client::Client| client.delete(all, Some(DeleteOptions::new().with_prefix())).await;
    let deleted = told(etcd.run(deleting))?;
    let revision = deleted.header().map_or(0, |header| header.revision());
    let physical = CompactionOptions::new().with_physical();
    // A revision that is compacted already is as good.
    let _ = etcd.run(async move |mut client| client.compact(revision, Some(physical)).await);
    for url in urls {
        told(connect(vec![url.clone()])?.run(async move |mut client| client.defragment().await))?;
    }
    // Each member has an alarm of its own.
    let disarm = async move |mut client: etcd_client::Client| {
        let raised = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
        for alarm in raised.alarms() {
            let mut of = AlarmOptions::new();
            of.with_member(alarm.member_id());
            client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of)).await?;
        }
        Ok(())
    };
    told(etcd.run(disarm))?;
    let key = etcd.key("room");
    told(etcd.run(async move |mut client| client.put(key, "", None).await)).map(drop)
}
