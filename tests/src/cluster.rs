//! What tests and benchmarks of clusters share: a cluster on this machine and a client of all its schedulers.

use crate::real::binary;
use anyhow::{Context, Result, ensure};
use capstan::local::{LocalCluster, Size};
use capstan_common::id::FunctionKey;
use serde_json::Value;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// The most that anything may take to come.
pub const SOON: Duration = Duration::from_secs(90);
/// The pause between two looks at what tells of no event: another process's answers, and what it writes.
const LOOK: Duration = Duration::from_millis(20);

/// Looks again and again until there is what is looked for.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < SOON, "{what} did not come");
        tokio::time::sleep(LOOK).await;
    }
}

/// Lines of a file that may not be there yet.
pub fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

/// A cluster and a client. Ends with this value.
pub struct Cluster {
    /// Where everything lies.
    pub folder: tempfile::TempDir,
    /// Its processes.
    pub local: LocalCluster,
    /// A client.
    pub http: reqwest::Client,
}

impl Drop for Cluster {
    /// What the schedulers wrote says why a test failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for scheduler in &self.local.schedulers {
                let log = std::fs::read_to_string(scheduler.process.log()).unwrap_or_default();
                eprintln!("{}:\n{log}", scheduler.process.name());
            }
        }
    }
}

impl Cluster {
    /// Starts one of this size.
    pub async fn start(size: Size) -> Result<Self> {
        let programs = binary("capstan-scheduler")?;
        Self::start_with(programs.parent().context("a folder")?, size).await
    }

    /// The same with the programs of a folder.
    pub async fn start_with(programs: &Path, size: Size) -> Result<Self> {
        let folder = crate::real::shared_folder()?;
        let local = LocalCluster::start(programs, folder.path(), &size).await?;
        let http = local.http()?.build()?;
        Ok(Self { folder, local, http })
    }

    /// The address of a path at a scheduler.
    pub fn at(&self, scheduler: usize, path: &str) -> String {
        format!("{}{path}", self.local.schedulers[scheduler].url)
    }

    /// The address of a function in the default namespace, and what of it.
    pub fn function(&self, scheduler: usize, name: &str, what: &str) -> String {
        self.at(scheduler, &format!("/v1/namespaces/default/functions/{name}{what}"))
    }

    /// What a path answers; null where nobody does.
    pub async fn get(&self, scheduler: usize, path: &str) -> Value {
        match self.http.get(self.at(scheduler, path)).send().await {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }

    /// Deploys a function.
    pub async fn deploy(&self, name: &str, spec: &Value) -> Result<()> {
        let answer = self.http.put(self.function(0, name, "")).json(spec).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
        Ok(())
    }

    /// One input: the status and the answer.
    pub async fn invoke(&self, scheduler: usize, name: &str, input: &str) -> (u16, Value) {
        let sent = self.http.post(self.function(scheduler, name, "/invoke")).body(input.to_owned()).send().await;
        match sent {
            Ok(sent) => (sent.status().as_u16(), sent.json().await.unwrap_or_default()),
            Err(error) => (0, error.to_string().into()),
        }
    }

    /// Which scheduler owns a function, as another one sees it.
    pub async fn owner(&self, asked: usize, name: &str) -> usize {
        eventually(&format!("an owner of {name}"), async || {
            let view = self.get(asked, "/v1/schedulers").await;
            let shard = FunctionKey::new("default", name).shard(view["shards"].as_u64()? as u16).0;
            let owns = |s: &&Value| s["shards"].as_array().is_some_and(|all| all.iter().any(|n| *n == shard));
            let found = view["schedulers"].as_array()?.iter().find(owns)?["name"].as_str()?;
            self.local.schedulers.iter().position(|s| s.process.name() == found)
        })
        .await
    }
}
