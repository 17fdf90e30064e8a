//! A whole cluster on this machine: etcd, schedulers and workers as processes of their own, on loopback ports, with a proxy in
//! every connection that can be cut.

mod process;
mod proxy;

pub use process::Process;
pub use proxy::{Mode, Proxy};

use crate::client::trusting;
use anyhow::{Context, Result, bail, ensure};
use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a part may take to come up.
const START: Duration = Duration::from_secs(30);

/// How large a cluster is, and what its parts are told besides.
#[derive(Debug, Clone)]
pub struct Size {
    /// etcd members.
    pub etcd: usize,
    /// Schedulers.
    pub schedulers: usize,
    /// Workers.
    pub workers: usize,
    /// Cores that each worker offers.
    pub worker_cpu: f64,
    /// Whether links and REST are encrypted, and workers join by tokens.
    pub tls: bool,
    /// Further settings of schedulers, as KEY=VALUE.
    pub set: Vec<String>,
    /// Further arguments of etcd.
    pub etcd_arguments: Vec<String>,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            etcd: 3,
            schedulers: 3,
            workers: 3,
            worker_cpu: 4.0,
            tls: false,
            set: Vec::new(),
            etcd_arguments: Vec::new(),
        }
    }
}

/// A scheduler and the proxies around it.
pub struct Scheduler {
    /// Its process.
    pub process: Process,
    /// Where its REST interface is.
    pub url: String,
    /// Between it and each etcd member.
    pub to_etcd: Vec<Proxy>,
    /// Between workers and it.
    pub from_workers: Proxy,
}

/// A cluster that runs. Ends with this value.
pub struct LocalCluster {
    /// etcd members.
    pub etcd: Vec<Process>,
    /// Their client addresses.
    pub etcd_urls: Vec<String>,
    /// Schedulers.
    pub schedulers: Vec<Scheduler>,
    /// Workers.
    pub workers: Vec<Process>,
    /// The authority's certificate, where REST is encrypted.
    pub ca: Option<PathBuf>,
}

/// So many ports that are free now; whoever is told of them takes them the next moment.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

impl LocalCluster {
    /// Starts a cluster in a folder, with the programs of another, and waits until it can work.
    pub async fn start(programs: &Path, folder: &Path, size: &Size) -> Result<Self> {
        ensure!(size.etcd > 0 && size.schedulers > 0, "a cluster has at least one etcd member and one scheduler");
        std::fs::create_dir_all(folder)?;
        let (etcd, etcd_urls) = start_etcd(folder, size)?;
        let mut cluster = Self { etcd, etcd_urls, schedulers: Vec::new(), workers: Vec::new(), ca: None };
        cluster.ca = size.tls.then(|| folder.join("scheduler-1").join("authority.pem"));
        cluster.await_etcd().await?;
        for n in 0..size.schedulers {
            let scheduler = cluster.scheduler(programs, folder, size, n).await?;
            cluster.schedulers.push(scheduler);
        }
        for scheduler in &mut cluster.schedulers {
            let line = scheduler.process.first_line(START).await?;
            scheduler.url = line.strip_prefix("ready ").context("a scheduler did not say `ready`")?.into();
            // Its own port is known now; started again it has the same.
            let address = scheduler.url.split("://").last().unwrap_or_default().to_owned();
            scheduler.process.set_argument("--listen", &address);
        }
        let links: Vec<String> = cluster.schedulers.iter().map(|s| s.from_workers.address().to_string()).collect();
        for n in 0..size.workers {
            let name = format!("worker-{}", n + 1);
            let data = folder.join(&name);
            let mut arguments: Vec<String> = vec![
                "--data-dir".into(),
                data.display().to_string(),
                format!("--set=worker.name={name}"),
                format!("--set=worker.cpu={}", size.worker_cpu),
                format!("--set=worker.schedulers={}", links.join(",")),
                format!("--set=worker.blob_dir={}", folder.join("blobs").display()),
            ];
            if size.tls {
                let join = cluster.invite().await?;
                arguments.extend(["--set=worker.link_tls=true".into(), format!("--set=worker.join={join}")]);
            }
            let program = programs.join("capstan-worker");
            cluster.workers.push(Process::start(&name, program, arguments, folder)?);
        }
        cluster.await_whole(size).await?;
        Ok(cluster)
    }

    async fn scheduler(&self, programs: &Path, folder: &Path, size: &Size, n: usize) -> Result<Scheduler> {
        let name = format!("scheduler-{}", n + 1);
        let mut to_etcd = Vec::new();
        for url in &self.etcd_urls {
            to_etcd.push(Proxy::start(url.trim_start_matches("http://").parse()?).await?);
        }
        let link: SocketAddr = ([127, 0, 0, 1], free_ports(1)?[0]).into();
        let from_workers = Proxy::start(link).await?;
        let endpoints: Vec<String> = to_etcd.iter().map(|proxy| format!("http://{}", proxy.address())).collect();
        let mut arguments = vec![
            "--listen".into(),
            "127.0.0.1:0".into(),
            "--data-dir".into(),
            folder.join(&name).display().to_string(),
            format!("--set=scheduler.name={name}"),
            format!("--set=scheduler.link_listen={link}"),
            format!("--set=scheduler.link_advertise={}", from_workers.address()),
            format!("--set=scheduler.etcd.endpoints={}", endpoints.join(",")),
            format!("--set=scheduler.blob_dir={}", folder.join("blobs").display()),
        ];
        arguments.extend(["link_tls", "rest_tls"].map(|key| format!("--set=scheduler.{key}={}", size.tls)));
        arguments.extend(size.set.iter().map(|pair| format!("--set={pair}")));
        let process = Process::start(&name, programs.join("capstan-scheduler"), arguments, folder)?;
        Ok(Scheduler { process, url: String::new(), to_etcd, from_workers })
    }

    /// Waits until etcd answers.
    async fn await_etcd(&self) -> Result<()> {
        let http = trusting(None, false)?.build()?;
        let begun = Instant::now();
        for url in &self.etcd_urls {
            loop {
                let answer = http.get(format!("{url}/health")).send().await;
                let healthy = match answer {
                    Ok(answer) => answer.text().await.is_ok_and(|text| text.contains("true")),
                    Err(_) => false,
                };
                if healthy {
                    break;
                }
                ensure!(begun.elapsed() < START, "etcd does not come up; is the package etcd-server installed?");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// A client of its schedulers.
    pub fn http(&self) -> Result<reqwest::ClientBuilder> {
        trusting(self.ca.as_deref(), false)
    }

    /// Waits until every scheduler knows every worker, and that every scheduler has its share of the shards.
    async fn await_whole(&self, size: &Size) -> Result<()> {
        let http = self.http()?.build()?;
        let begun = Instant::now();
        for scheduler in &self.schedulers {
            loop {
                let workers = ask(&http, &format!("{}/v1/workers", scheduler.url)).await;
                let all = ask(&http, &format!("{}/v1/schedulers", scheduler.url)).await;
                let know = workers["workers"].as_array().map_or(0, Vec::len) >= size.workers;
                if know && is_shared(&all, size.schedulers) {
                    break;
                }
                if begun.elapsed() > START {
                    bail!("{} does not see the whole cluster: {workers} {all}", scheduler.process.name());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// A join token, from the first scheduler.
    pub async fn invite(&self) -> Result<String> {
        let url = format!("{}/v1/join-tokens", self.schedulers[0].url);
        let made: serde_json::Value = self.http()?.build()?.post(url).send().await?.json().await?;
        Ok(made["join_token"].as_str().with_context(|| format!("no join token was made: {made}"))?.to_owned())
    }

    /// Every connection passes, every process runs.
    pub fn heal(&mut self) -> Result<()> {
        for process in self.etcd.iter_mut().chain(&mut self.workers) {
            process.heal()?;
        }
        for scheduler in &mut self.schedulers {
            scheduler.process.heal()?;
            scheduler.to_etcd.iter().chain([&scheduler.from_workers]).for_each(|proxy| proxy.set(Mode::Pass));
        }
        Ok(())
    }
}

async fn ask(http: &reqwest::Client, url: &str) -> serde_json::Value {
    match http.get(url).send().await {
        Ok(answer) => answer.json().await.unwrap_or_default(),
        Err(_) => serde_json::Value::Null,
    }
}

/// Whether so many schedulers own all shards between them, and none more than its share.
fn is_shared(view: &serde_json::Value, schedulers: usize) -> bool {
    let (Some(all), Some(shards)) = (view["schedulers"].as_array(), view["shards"].as_u64()) else { return false };
    let held: Vec<usize> = all.iter().map(|s| s["shards"].as_array().map_or(0, Vec::len)).collect();
    let most = (shards as usize).div_ceil(schedulers);
    all.len() == schedulers && held.iter().sum::<usize>() == shards as usize && held.iter().all(|h| *h <= most)
}

/// How etcd members of these ports, for clients and for each other, are told to be a cluster in a folder.
pub fn etcd_arguments(folder: &Path, ports: &[(u16, u16)]) -> Vec<Vec<String>> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let name = |n: usize| format!("etcd-{}", n + 1);
    let all: Vec<String> =
        ports.iter().enumerate().map(|(n, (_, peer))| format!("{}={}", name(n), url(*peer))).collect();
    let of = |(n, (client, peer)): (usize, &(u16, u16))| {
        let arguments = [
            ("--name", name(n)),
            ("--data-dir", folder.join(name(n)).display().to_string()),
            ("--initial-cluster", all.join(",")),
            ("--listen-client-urls", url(*client)),
            ("--advertise-client-urls", url(*client)),
            ("--listen-peer-urls", url(*peer)),
            ("--initial-advertise-peer-urls", url(*peer)),
        ];
        arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    };
    ports.iter().enumerate().map(of).collect()
}

fn start_etcd(folder: &Path, size: &Size) -> Result<(Vec<Process>, Vec<String>)> {
    let ports: Vec<(u16, u16)> = free_ports(2 * size.etcd)?.chunks(2).map(|p| (p[0], p[1])).collect();
    let mut members = Vec::new();
    for (n, mut arguments) in etcd_arguments(folder, &ports).into_iter().enumerate() {
        arguments.extend(size.etcd_arguments.clone());
        members.push(Process::start(&format!("etcd-{}", n + 1), PathBuf::from("etcd"), arguments, folder)?);
    }
    Ok((members, ports.iter().map(|(client, _)| format!("http://127.0.0.1:{client}")).collect()))
}
