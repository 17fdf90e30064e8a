//! A worker's configuration.

use crate::runtime::gpu::Offer;
use capstan_common::{resource::Amount, users::Users};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that can be set of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Its name, unique in a cluster; the host's by default.
    pub name: String,
    /// Schedulers' addresses for links, like `10.0.0.1:7071`; one is enough, it tells of the others.
    pub schedulers: Vec<String>,
    /// The IP address at which schedulers reach its containers' servers; empty: where its links come from. Needed behind a proxy or
    /// address translation.
    pub advertise: String,
    /// Whether links are encrypted, and the worker shows a certificate: where its schedulers have `link_tls`.
    pub link_tls: bool,
    /// The join token that gets it its first certificate; needed once.
    pub join: String,
    /// How containers run.
    pub runtime: Runtime,
    /// With the runtime `sim`: how many workers this process plays, each with a link of its own, and `-0`, `-1` … behind its name.
    pub sim_workers: u32,
    /// With the runtime `sim`: how long a container takes to be ready, in milliseconds.
    pub sim_start_ms: u32,
    /// With the runtime `sim`: how long each input takes, in milliseconds.
    pub sim_run_ms: u32,
    /// Cores that it offers; all of the machine's by default.
    pub cpu: Option<f64>,
    /// Memory that it offers; nine tenths of the machine's by default.
    pub memory_mib: Option<u64>,
    /// GPUs that it offers, all of one model: `auto` for those that NVIDIA's driver finds, `none`, a model like `H100` for those
    /// of it alone, or `H100:8` for so many without asking a driver: programs are then told their numbers.
    pub gpus: String,
    /// The driver's library (NVML); empty: where the system has it.
    pub nvml: PathBuf,
    /// Where containers have their scratch folders.
    pub data_dir: PathBuf,
    /// Where large payloads lie, for schedulers and workers alike; empty: `blobs` in the data folder.
    pub blob_dir: PathBuf,
    /// Where volumes lie, by namespace and name, on a folder that workers share if their functions are to see the same; empty:
    /// `volumes` in the data folder.
    pub volume_dir: PathBuf,
    /// Outputs above this travel through the blob store.
    pub blob_threshold_bytes: usize,
    /// The largest output of one input.
    pub output_max_bytes: usize,
    /// Whether limits are enforced by cgroups where the machine allows it.
    pub cgroups: bool,
    /// The users that functions run as, FIRST-LAST: each namespace has one of them, computed from its name. The same on all workers
    /// that share volumes.
    pub function_uids: String,
    /// Whether functions that are deployed as `trusted` may run here, as the worker's user. By default they may in `capstan up`,
    /// and may not on a worker of its own.
    pub trust_functions: Option<bool>,
    /// What no function may see besides the folders of this worker. Not a setting: whoever starts the worker knows.
    #[serde(skip)]
    pub hidden: Vec<PathBuf>,
}

/// How containers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// As processes of this machine.
    Process,
    /// Not at all: they are played, for trying a cluster of many machines on few.
    Sim,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        Self {
            name: if host.is_empty() { "worker".into() } else { host.into() },
            schedulers: Vec::new(),
            advertise: String::new(),
            link_tls: false,
            join: String::new(),
            runtime: Runtime::Process,
            sim_workers: 1,
            sim_start_ms: 1,
            sim_run_ms: 1,
            cpu: None,
            memory_mib: None,
            gpus: "auto".into(),
            nvml: PathBuf::new(),
            data_dir: PathBuf::from("capstan-data"),
            blob_dir: PathBuf::new(),
            volume_dir: PathBuf::new(),
            blob_threshold_bytes: 32 << 10,
            output_max_bytes: 16 << 20,
            cgroups: true,
            function_uids: "1073741824-1610612735".into(),
            trust_functions: None,
            hidden: Vec::new(),
        }
    }
}

impl WorkerConfig {
    /// Says what must not be started like this.
    pub fn check(&self) -> Result<(), String> {
        if self.sim_workers == 0 {
            return Err("worker.sim_workers must be at least 1".into());
        }
        if self.runtime == Runtime::Sim && self.link_tls {
            return Err(
                "worker.runtime=sim plays many workers, and each would need a join token: leave worker.link_tls out"
                    .into(),
            );
        }
        if self.runtime == Runtime::Process && self.sim_workers > 1 {
            return Err(format!(
                "worker.sim_workers is {}, and only the runtime `sim` plays more than one: set worker.runtime=sim",
                self.sim_workers
            ));
        }
        Offer::read(&self.gpus)?;
        Users::read(&self.function_uids)?;
        if let Some(cpu) = self.cpu.filter(|cpu| !(0.001..=100_000.0).contains(cpu)) {
            return Err(format!("worker.cpu must be a number of cores from 0.001 to 100000, is {cpu}"));
        }
        if self.memory_mib == Some(0) {
            return Err("worker.memory_mib must be at least 1, is 0".into());
        }
        if !self.advertise.is_empty() && self.advertise.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("worker.advertise must be an IP address, is `{}`", self.advertise));
        }
        if self.runtime == Runtime::Process && !self.schedulers.is_empty() && self.blob_dir.as_os_str().is_empty() {
            return Err(
                "a worker of a cluster needs worker.blob_dir: the folder that all schedulers and workers share, for payloads that are too large to travel with their records"
                    .into(),
            );
        }
        Ok(())
    }

    /// Where large payloads lie.
    pub fn blobs(&self) -> PathBuf {
        if self.blob_dir.as_os_str().is_empty() { self.data_dir.join("blobs") } else { self.blob_dir.clone() }
    }

    /// Where volumes lie.
    pub fn volumes(&self) -> PathBuf {
        if self.volume_dir.as_os_str().is_empty() { self.data_dir.join("volumes") } else { self.volume_dir.clone() }
    }

    /// What no function may see: all of Capstan's own.
    pub fn unseen(&self) -> Vec<PathBuf> {
        let own = [self.data_dir.clone(), self.blobs(), self.volumes()];
        own.into_iter()
            .chain(self.hidden.clone())
            .filter_map(|path| path.canonicalize().or_else(|_| std::path::absolute(&path)).ok())
            .collect()
    }

    /// What the worker offers, but for GPUs.
    pub fn capacity(&self) -> Amount {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let memory = || {
            let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
            let kib = total.and_then(|t| t.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.unwrap_or(1 << 20) / 1024 * 9 / 10
        };
        Amount {
            cpu_milli: (self.cpu.unwrap_or(cores) * 1000.0) as u64,
            memory_mib: self.memory_mib.unwrap_or_else(memory),
            gpus: 0,
        }
    }
}
