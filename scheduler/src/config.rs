//! A scheduler's configuration: one struct, defaults first, then file, environment and flags.

use crate::store::etcd::EtcdConfig;
use capstan_common::users::Users;
use capstan_scheduler_core::limits::Limits;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::SetOnce;

/// What a scheduler knows of a worker that is started together with it.
#[derive(Debug, Clone)]
pub struct Here {
    /// As whom functions run.
    pub users: Users,
    /// What they do not see.
    pub hidden: Vec<PathBuf>,
    /// Whether they are kept wholly apart: known once that worker has tried.
    pub strict: Arc<SetOnce<bool>>,
}

impl PartialEq for Here {
    /// As it is configured; what is found out later does not count.
    fn eq(&self, other: &Self) -> bool {
        (&self.users, &self.hidden) == (&other.users, &other.hidden)
    }
}

/// Everything that can be set of a scheduler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Its name, unique in a cluster; the host's by default.
    pub name: String,
    /// Where REST is served.
    pub listen: SocketAddr,
    /// Where other schedulers reach REST, like `http://10.0.0.1:7070`; empty: at `listen`.
    pub advertise: String,
    /// Where workers of other processes dial in, like `10.0.0.1:7071`; empty: nowhere.
    pub link_listen: String,
    /// Where workers reach that, if not there.
    pub link_advertise: String,
    /// Whether links are encrypted, and workers must show a certificate of the cluster's own authority.
    pub link_tls: bool,
    /// How long a worker's certificate is good, in seconds; it is renewed at half of that.
    pub worker_certificate_s: u32,
    /// Whether REST is encrypted. Other schedulers are known by the cluster's own authority, and so is this one by clients, unless
    /// it has a certificate of yours; the authority's is written to `authority.pem` in the data folder.
    pub rest_tls: bool,
    /// Your certificate for REST, as PEM, with all that leads to its authority; empty: the cluster's own authority makes one.
    pub rest_cert_file: PathBuf,
    /// Its key, as PEM.
    pub rest_key_file: PathBuf,
    /// Where everything durable lies, unless `etcd` has endpoints.
    pub data_dir: PathBuf,
    /// Where large payloads lie, for schedulers and workers alike; empty: `blobs` in the data folder.
    pub blob_dir: PathBuf,
    /// Says that the network between clients, schedulers and workers is kept from others: nothing that travels is encrypted by
    /// Capstan. Without it only loopback addresses are listened on.
    pub plaintext_on_my_own_network: bool,
    /// The store of a cluster.
    pub etcd: EtcdConfig,
    /// Bearer tokens, any of which opens everything. Empty: no token is needed, and only a loopback address may be listened on.
    pub tokens: Vec<String>,
    /// A file with more of them, one a line: an environment is seen by more than a file.
    pub tokens_file: PathBuf,
    /// The largest input or output over REST.
    pub payload_max_bytes: usize,
    /// Memory for requests' bodies that have not come whole, all together; a token has half of it at most.
    pub bodies_max_bytes: usize,
    /// Payloads above this travel through the blob store.
    pub blob_threshold_bytes: usize,
    /// Requests a second that a token may send which change something, sustained; reading is not counted.
    pub rate_per_s: u32,
    /// The same in a burst.
    pub rate_burst: u32,
    /// How long such a burst may last, in seconds.
    pub rate_burst_s: u32,
    /// Requests a second that each function's server may get through `/web`, sustained, with bursts as a token's; 0: no limit.
    pub web_rate_per_s: u32,
    /// Networks, like `10.0.0.0/8`, in which `worker.advertise` may lie. Where a worker says that it is elsewhere than its link
    /// comes from, its containers' servers are not reached.
    pub worker_networks: Vec<IpNet>,
    /// Reverse proxies whose `X-Forwarded-Host` and `X-Forwarded-Proto` are believed; others' are left out.
    pub trusted_proxies: Vec<IpAddr>,
    /// Further names by which clients reach this scheduler, for the certificate that the cluster's authority signs for it.
    pub tls_names: Vec<String>,
    /// Where KEDA's external scaler is served; empty: nowhere. On other than loopback addresses it needs `keda_client_ca_file`,
    /// or `keda_open`.
    pub keda_listen: String,
    /// A file with the key that secrets are sealed with before they are stored: 64 hexadecimal digits, the same at all schedulers of
    /// a cluster; empty: they are stored as they are, where only Capstan's user can read them.
    pub secrets_key_file: PathBuf,
    /// Where functions' pages are served on an origin of their own, like `127.0.0.1:7073`; empty: only beside the API, where
    /// browsers keep them in a sandbox.
    pub web_listen: String,
    /// Functions run on this machine, by a worker that is started together with this scheduler: as which users, and what they do
    /// not see. Not a setting: whoever starts both knows.
    #[serde(skip)]
    pub here: Option<Here>,
    /// Whether functions that are deployed with a token of some namespaces may run where they are not kept wholly apart.
    pub trust_functions: bool,
    /// Where other schedulers reach this one's service for KEDA, like `10.0.0.1:7072`, to ask about what it owns; empty: where it
    /// is served, on the host of `advertise` if that is everywhere.
    pub keda_advertise: String,
    /// Whether KEDA may be served on an address that others can reach, without knowing who asks.
    pub keda_open: bool,
    /// Whether KEDA is served encrypted, with a certificate of the cluster's own authority.
    pub keda_tls: bool,
    /// Authorities, as PEM, one of which must have signed the certificate that KEDA shows; empty: nobody needs one.
    pub keda_client_ca_file: PathBuf,
    /// The Prometheus server that is asked for requests of models that pass Capstan by; empty: none.
    pub prometheus_url: String,
    /// Whether models' gauges are told under their newer names (`wva_…`) too.
    pub wva_metrics: bool,
    /// Whether models' requests through Capstan are told under vLLM's name (`vllm:request_success_total`) too, for queries
    /// that ask for it; turn it off where the model servers' own counters have the same labels.
    pub vllm_metrics: bool,
    /// Threads that serve REST.
    pub rest_threads: usize,
    /// A worker that is silent for so long is unreachable.
    pub unreachable_after_ms: u64,
    /// A worker that is silent for so long is lost: what it held runs elsewhere.
    pub lost_after_ms: u64,
    /// Limits of each function.
    pub limits: Limits,
}

/// The largest payload that may travel with its record.
const BLOB_THRESHOLD_MAX: usize = 512 << 10;

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            name: host_name("scheduler"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            advertise: String::new(),
            link_listen: String::new(),
            link_advertise: String::new(),
            link_tls: false,
            worker_certificate_s: 86_400,
            rest_tls: false,
            rest_cert_file: PathBuf::new(),
            rest_key_file: PathBuf::new(),
            blob_dir: PathBuf::new(),
            plaintext_on_my_own_network: false,
            etcd: EtcdConfig::default(),
            data_dir: PathBuf::from("capstan-data"),
            tokens: Vec::new(),
            tokens_file: PathBuf::new(),
            payload_max_bytes: 16 << 20,
            bodies_max_bytes: 48 << 20,
            blob_threshold_bytes: 32 << 10,
            rate_per_s: 200,
            rate_burst: 1000,
            rate_burst_s: 5,
            web_rate_per_s: 0,
            worker_networks: Vec::new(),
            trusted_proxies: Vec::new(),
            tls_names: Vec::new(),
            keda_listen: String::new(),
            trust_functions: false,
            here: None,
            web_listen: String::new(),
            secrets_key_file: PathBuf::new(),
            keda_advertise: String::new(),
            keda_open: false,
            keda_tls: false,
            keda_client_ca_file: PathBuf::new(),
            prometheus_url: String::new(),
            wva_metrics: true,
            vllm_metrics: true,
            rest_threads: 2,
            unreachable_after_ms: 3_000,
            lost_after_ms: 10_000,
            limits: Limits::default(),
        }
    }
}

/// The machine's name, or this where it has none.
fn host_name(otherwise: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { otherwise.into() } else { host.into() }
}

impl SchedulerConfig {
    /// Files that hold secrets: no function may see them.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let files = [&self.tokens_file, &self.rest_key_file, &self.secrets_key_file];
        files.into_iter().filter(|path| !path.as_os_str().is_empty()).cloned().collect()
    }

    /// Whether it is one of a cluster.
    pub fn is_clustered(&self) -> bool {
        !self.etcd.endpoints.is_empty()
    }

    /// Reads the tokens of `tokens_file`, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or everybody can read it.
    pub fn read_tokens(&mut self) -> Result<(), String> {
        use std::os::unix::fs::PermissionsExt;
        let file = &self.tokens_file;
        if file.as_os_str().is_empty() {
            return Ok(());
        }
        let cannot = |error| format!("tokens_file {} cannot be read: {error}", file.display());
        let mode = std::fs::metadata(file).map_err(cannot)?.permissions().mode();
        if mode & 0o007 != 0 {
            return Err(format!(
                "tokens_file {} can be read by everybody on this machine: chmod 600 it",
                file.display()
            ));
        }
        let text = std::fs::read_to_string(file).map_err(cannot)?;
        let tokens =
            text.split(['\n', ',']).map(str::trim).filter(|token| !token.is_empty() && !token.starts_with('#'));
        self.tokens.extend(tokens.map(str::to_owned));
        Ok(())
    }

    /// Where large payloads lie.
    pub fn blobs(&self) -> PathBuf {
        if self.blob_dir.as_os_str().is_empty() { self.data_dir.join("blobs") } else { self.blob_dir.clone() }
    }

    /// Your certificate for REST and its key, if there are.
    pub fn rest_certificate(&self) -> Option<(&Path, &Path)> {
        let given = !self.rest_cert_file.as_os_str().is_empty();
        given.then_some((self.rest_cert_file.as_path(), self.rest_key_file.as_path()))
    }

    /// How REST is spoken: `http`, or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.rest_tls { "https" } else { "http" }
    }

    /// Where workers dial in, if anywhere.
    pub fn link_address(&self) -> Result<Option<SocketAddr>, String> {
        address("link_listen", &self.link_listen, "127.0.0.1:7071")
    }

    /// Where KEDA is served, if anywhere.
    pub fn keda_address(&self) -> Result<Option<SocketAddr>, String> {
        address("keda_listen", &self.keda_listen, "127.0.0.1:7072")
    }

    /// Where functions' pages have an origin of their own, if anywhere.
    pub fn web_address(&self) -> Result<Option<SocketAddr>, String> {
        address("web_listen", &self.web_listen, "127.0.0.1:7073")
    }

    /// Where the Prometheus server answers queries, if there is one.
    pub fn prometheus(&self) -> Result<Option<hyper::Uri>, String> {
        let base = self.prometheus_url.trim_end_matches('/');
        if base.is_empty() {
            return Ok(None);
        }
        let uri = format!("{base}/api/v1/query").parse::<hyper::Uri>();
        let uri = uri.ok().filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
        let wrong = || format!("prometheus_url must be like http://127.0.0.1:9090, is `{}`", self.prometheus_url);
        uri.map(Some).ok_or_else(wrong)
    }

    /// Says what must not be started like this.
    pub fn check(&self) -> Result<(), String> {
        self.check_doors()?;
        self.check_keda()?;
        self.prometheus()?;
        self.check_certificates()?;
        self.check_addresses()?;
        self.check_cluster()?;
        if let Some(weak) = self.tokens.iter().find(|t| t.len() < 16) {
            return Err(format!("a token of {} characters is too short: use at least 16", weak.len()));
        }
        if self.blob_threshold_bytes > BLOB_THRESHOLD_MAX {
            return Err(format!(
                "blob_threshold_bytes is {}, and may be at most {BLOB_THRESHOLD_MAX}: what is larger does not travel with its record",
                self.blob_threshold_bytes
            ));
        }
        if self.rate_per_s == 0 || self.rate_burst == 0 || self.rest_threads == 0 {
            return Err("rate_per_s, rate_burst and rest_threads must be at least 1".into());
        }
        Ok(())
    }

    /// Who can reach what is served must be known, and what travels must be closed to others.
    fn check_doors(&self) -> Result<(), String> {
        let doors = || [Some(self.listen), self.web_address().ok().flatten()].into_iter().flatten();
        self.web_address()?;
        if let Some(open) = doors().find(|door| !door.ip().is_loopback() && self.tokens.is_empty()) {
            return Err(format!(
                "listening on {open} needs authentication: set `tokens` (or CAPSTAN_TOKENS) or `tokens_file`, or listen on 127.0.0.1"
            ));
        }
        let links = self.link_address()?.filter(|link| !link.ip().is_loopback() && !self.link_tls);
        let open = links.or_else(|| doors().find(|door| !door.ip().is_loopback() && !self.rest_tls));
        if let Some(open) = open.filter(|_| !self.plaintext_on_my_own_network) {
            return Err(format!(
                "listening on {open} lets others read and change everything that travels: inputs, outputs, tokens, and what workers are told. Set rest_tls=true and link_tls=true, listen on 127.0.0.1, or say plaintext_on_my_own_network=true if nobody else is on that network"
            ));
        }
        Ok(())
    }

    fn check_keda(&self) -> Result<(), String> {
        let knows_who = !self.keda_client_ca_file.as_os_str().is_empty();
        if knows_who && !self.keda_tls {
            return Err("keda_client_ca_file is set and keda_tls is not: set keda_tls=true too".into());
        }
        if let Some(keda) = self.keda_address()?
            && !keda.ip().is_loopback()
            && !self.keda_open
            && !knows_who
        {
            return Err(format!(
                "keda_listen is {keda}, where others can reach it, and anybody may ask: set keda_tls=true and keda_client_ca_file to whom you let ask, keda_open=true if your network keeps strangers out, or listen on 127.0.0.1"
            ));
        }
        Ok(())
    }

    fn check_certificates(&self) -> Result<(), String> {
        let advertised = format!("{}://", self.scheme());
        if !self.advertise.is_empty() && !self.advertise.starts_with(&advertised) {
            return Err(format!(
                "advertise must begin with {advertised}, as rest_tls is {}; it is `{}`",
                self.rest_tls, self.advertise
            ));
        }
        let files = [&self.rest_cert_file, &self.rest_key_file].map(|file| !file.as_os_str().is_empty());
        if files[0] != files[1] {
            return Err("rest_cert_file and rest_key_file belong together: set both, or neither".into());
        }
        if files[0] && !self.rest_tls {
            return Err("rest_cert_file is set and rest_tls is not: set rest_tls=true too".into());
        }
        if self.worker_certificate_s == 0 {
            return Err("worker_certificate_s must be at least 1".into());
        }
        Ok(())
    }

    /// Others must know where to reach one that listens on all addresses.
    fn check_addresses(&self) -> Result<(), String> {
        let link = self.link_address()?;
        let anywhere = |at: Option<SocketAddr>| at.is_some_and(|at| at.ip().is_unspecified());
        for (at, own, other) in [
            (anywhere(Some(self.listen)), "advertise", &self.advertise),
            (anywhere(link), "link_advertise", &self.link_advertise),
        ] {
            if self.is_clustered() && at && other.is_empty() {
                return Err(format!(
                    "{own} must name an address of this machine: it listens on all of them, and others must know which to use"
                ));
            }
        }
        Ok(())
    }

    fn check_cluster(&self) -> Result<(), String> {
        if !self.is_clustered() {
            return Ok(());
        }
        self.etcd.check()?;
        if self.link_address()?.is_none() {
            return Err("a scheduler of a cluster needs link_listen: workers dial in there, like 127.0.0.1:7071".into());
        }
        if self.blob_dir.as_os_str().is_empty() {
            return Err("a scheduler of a cluster needs blob_dir: a folder that all schedulers and workers share, for payloads that are too large for etcd".into());
        }
        if self.name.is_empty() || self.name.contains('/') {
            return Err(format!("name must not be empty or contain a slash, is `{}`", self.name));
        }
        Ok(())
    }
}

fn address(field: &str, text: &str, example: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("{field} must be an address like {example}, is `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_address_without_tokens_is_refused() {
        let mut config = SchedulerConfig::default();
        assert_eq!(config.check(), Ok(()));
        config.listen = SocketAddr::from(([0, 0, 0, 0], 7070));
        assert!(config.check().unwrap_err().contains("needs authentication"));
        config.tokens = vec!["0123456789abcdef".into()];
        assert!(config.check().unwrap_err().contains("plaintext_on_my_own_network"));
        config.plaintext_on_my_own_network = true;
        assert_eq!(config.check(), Ok(()));
        let encrypted = SchedulerConfig { rest_tls: true, plaintext_on_my_own_network: false, ..config };
        assert_eq!(encrypted.check(), Ok(()));
        let half = SchedulerConfig { rest_cert_file: "a.pem".into(), ..encrypted };
        assert!(half.check().unwrap_err().contains("belong together"));
        // The links of workers are as open as REST.
        let links = SchedulerConfig { link_listen: "10.0.0.1:7071".into(), ..SchedulerConfig::default() };
        assert!(links.check().unwrap_err().contains("10.0.0.1:7071 lets others"));
    }
}
