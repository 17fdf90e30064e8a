//! A whole cluster on this machine: etcd, schedulers and workers as processes of their own, on loopback ports or each in a network
//! namespace, with a proxy in every connection that can be cut.

mod net;
mod process;
mod proxy;

pub use net::is_allowed;
pub use process::Process;
pub use proxy::{Mode, Proxy};

use crate::client::trusting;
use anyhow::{Context, Result, bail, ensure};
use net::Net;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
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
    /// Whether each node has a network namespace of its own, instead of loopback ports.
    pub namespaces: bool,
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
            namespaces: false,
            set: Vec::new(),
            etcd_arguments: Vec::new(),
        }
    }
}

/// A node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An etcd member.
    Etcd(usize),
    /// A scheduler.
    Scheduler(usize),
    /// A worker.
    Worker(usize),
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
    /// The token that schedulers want, where others than this machine's users could reach them.
    pub token: Option<String>,
    ground: Ground,
}

/// Where nodes are.
struct Ground {
    net: Option<Net>,
    etcd: usize,
    schedulers: usize,
}

/// The two ports of a node that has an address of its own.
const PORTS: [u16; 2] = [7070, 7071];

impl Ground {
    fn make(size: &Size) -> Result<Self> {
        let net = size.namespaces.then(|| Net::make(size.etcd + size.schedulers + size.workers)).transpose()?;
        Ok(Self { net, etcd: size.etcd, schedulers: size.schedulers })
    }

    fn number(&self, part: Part) -> usize {
        match part {
            Part::Etcd(n) => n,
            Part::Scheduler(n) => self.etcd + n,
            Part::Worker(n) => self.etcd + self.schedulers + n,
        }
    }

    /// The address of this machine, for its nodes.
    fn here(&self) -> IpAddr {
        self.net.as_ref().map_or(Ipv4Addr::LOCALHOST, Net::outside).into()
    }

    /// Two addresses at which a node can listen.
    fn listen(&self, part: Part) -> Result<(SocketAddr, SocketAddr)> {
        let at = |ip: Ipv4Addr, ports: &[u16]| ((ip, ports[0]).into(), (ip, ports[1]).into());
        Ok(match &self.net {
            Some(net) => at(net.address(self.number(part)), &PORTS),
            None => at(Ipv4Addr::LOCALHOST, &free_ports(PORTS.len())?),
        })
    }

    /// Starts a node's program.
    fn start(
        &self,
        part: Part,
        name: &str,
        program: PathBuf,
        arguments: Vec<String>,
        folder: &Path,
    ) -> Result<Process> {
        let Some(net) = &self.net else { return Process::start(name, program, arguments, folder) };
        let (wrapper, mut inside) = net.inside(self.number(part), &program);
        inside.extend(arguments);
        Process::start(name, wrapper.into(), inside, folder)
    }
}

/// Ports that the kernel gives to nobody by itself: a connection that goes out must not take one before its listener does.
const OURS: std::ops::Range<u16> = 10_000..32_000;

/// So many ports that are free now; whoever is told of them takes them the next moment. Each process looks at a place of its own.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(64);
    let any = || OURS.start + (first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % OURS.len() as u32) as u16;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let found: Vec<u16> = (0..OURS.len()).map(|_| any()).filter(free).take(count).collect();
    ensure!(found.len() == count, "no {count} ports are free from {} to {}", OURS.start, OURS.end);
    Ok(found)
}

impl LocalCluster {
    /// Starts a cluster in a folder, with the programs of another, and waits until it can work.
    pub async fn start(programs: &Path, folder: &Path, size: &Size) -> Result<Self> {
        ensure!(size.etcd > 0 && size.schedulers > 0, "a cluster has at least one etcd member and one scheduler");
        std::fs::create_dir_all(folder)?;
        let ground = Ground::make(size)?;
        let (etcd, etcd_urls) = start_etcd(&ground, folder, size)?;
        let ca = size.tls.then(|| folder.join("scheduler-1").join("authority.pem"));
        let token = size.namespaces.then(|| uuid::Uuid::new_v4().simple().to_string());
        let mut cluster = Self { etcd, etcd_urls, schedulers: Vec::new(), workers: Vec::new(), ca, token, ground };
        cluster.await_etcd().await?;
        for n in 0..size.schedulers {
            let scheduler = cluster.scheduler(programs, folder, size, n).await?;
            cluster.schedulers.push(scheduler);
        }
        for scheduler in &mut cluster.schedulers {
            let line = scheduler.process.first_line(START).await?;
            scheduler.url = line.strip_prefix("ready ").context("a scheduler did not say `ready`")?.into();
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
                format!("--set=worker.volume_dir={}", folder.join("volumes").display()),
            ];
            if let Some(net) = &cluster.ground.net {
                let at = net.address(cluster.ground.number(Part::Worker(n)));
                arguments.push(format!("--set=worker.advertise={at}"));
            }
            if size.tls {
                let join = cluster.invite().await?;
                arguments.extend(["--set=worker.link_tls=true".into(), format!("--set=worker.join={join}")]);
            }
            let program = programs.join("capstan-worker");
            let worker = cluster.ground.start(Part::Worker(n), &name, program, arguments, folder)?;
            cluster.workers.push(worker);
        }
        cluster.await_whole(size).await?;
        Ok(cluster)
    }

    async fn scheduler(&self, programs: &Path, folder: &Path, size: &Size, n: usize) -> Result<Scheduler> {
        let name = format!("scheduler-{}", n + 1);
        let (mut to_etcd, here) = (Vec::new(), self.ground.here());
        for url in &self.etcd_urls {
            to_etcd.push(Proxy::start(here, url.trim_start_matches("http://").parse()?).await?);
        }
        let (listen, link) = self.ground.listen(Part::Scheduler(n))?;
        let from_workers = Proxy::start(here, link).await?;
        let endpoints: Vec<String> = to_etcd.iter().map(|proxy| format!("http://{}", proxy.address())).collect();
        let mut arguments = vec![
            "--listen".into(),
            listen.to_string(),
            "--data-dir".into(),
            folder.join(&name).display().to_string(),
            format!("--set=scheduler.name={name}"),
            format!("--set=scheduler.link_listen={link}"),
            format!("--set=scheduler.link_advertise={}", from_workers.address()),
            format!("--set=scheduler.etcd.endpoints={}", endpoints.join(",")),
            format!("--set=scheduler.blob_dir={}", folder.join("blobs").display()),
        ];
        if let Some(token) = &self.token {
            arguments.push(format!("--set=scheduler.tokens={token}"));
            // Nobody but this machine is on that network.
            arguments.push(format!("--set=scheduler.plaintext_on_my_own_network={}", !size.tls));
        }
        arguments.extend(["link_tls", "rest_tls"].map(|key| format!("--set=scheduler.{key}={}", size.tls)));
        arguments.extend(size.set.iter().map(|pair| format!("--set={pair}")));
        let program = programs.join("capstan-scheduler");
        let process = self.ground.start(Part::Scheduler(n), &name, program, arguments, folder)?;
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
        let client = trusting(self.ca.as_deref(), false)?;
        let Some(token) = &self.token else { return Ok(client) };
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse()?);
        Ok(client.default_headers(headers).no_proxy())
    }

    /// Pulls a node's cable, or plugs it in again: only where nodes have namespaces.
    pub fn plug(&self, part: Part, plugged: bool) -> Result<()> {
        let net = self.ground.net.as_ref().context("the nodes have no network of their own")?;
        net.plug(self.ground.number(part), plugged)
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
        if self.ground.net.is_some() {
            let parts = (0..self.etcd.len()).map(Part::Etcd).chain((0..self.schedulers.len()).map(Part::Scheduler));
            parts.chain((0..self.workers.len()).map(Part::Worker)).try_for_each(|part| self.plug(part, true))?;
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
pub fn etcd_arguments(folder: &Path, ends: &[(SocketAddr, SocketAddr)]) -> Vec<Vec<String>> {
    let url = |end: SocketAddr| format!("http://{end}");
    let name = |n: usize| format!("etcd-{}", n + 1);
    let all: Vec<String> =
        ends.iter().enumerate().map(|(n, (_, peer))| format!("{}={}", name(n), url(*peer))).collect();
    let of = |(n, (client, peer)): (usize, &(SocketAddr, SocketAddr))| {
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
    ends.iter().enumerate().map(of).collect()
}

fn start_etcd(ground: &Ground, folder: &Path, size: &Size) -> Result<(Vec<Process>, Vec<String>)> {
    let ends = (0..size.etcd).map(|n| ground.listen(Part::Etcd(n))).collect::<Result<Vec<_>>>()?;
    let mut members = Vec::new();
    for (n, mut arguments) in etcd_arguments(folder, &ends).into_iter().enumerate() {
        arguments.extend(size.etcd_arguments.clone());
        let name = format!("etcd-{}", n + 1);
        members.push(ground.start(Part::Etcd(n), &name, PathBuf::from("etcd"), arguments, folder)?);
    }
    Ok((members, ends.iter().map(|(client, _)| format!("http://{client}")).collect()))
}
