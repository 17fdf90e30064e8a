//! A scheduler's configuration: one struct, defaults first, then file, environment and flags.

use capstan_scheduler_core::limits::Limits;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf};

/// Everything that can be set of a scheduler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Where REST is served.
    pub listen: SocketAddr,
    /// Where everything durable lies.
    pub data_dir: PathBuf,
    /// Bearer tokens, any of which opens everything. Empty: no token is needed, and only a loopback address may be listened on.
    pub tokens: Vec<String>,
    /// The largest input or output over REST.
    pub payload_max_bytes: usize,
    /// Payloads above this travel through the blob store.
    pub blob_threshold_bytes: usize,
    /// Requests a second that a token may send, sustained.
    pub rate_per_s: u32,
    /// Requests a second that a token may send in a burst.
    pub rate_burst: u32,
    /// How long such a burst may last, in seconds.
    pub rate_burst_s: u32,
    /// Where KEDA's external scaler is served; empty: nowhere. It knows no authentication, so it must be a loopback address
    /// unless `keda_open` is set.
    pub keda_listen: String,
    /// Whether KEDA may be served on an address that others can reach.
    pub keda_open: bool,
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

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            data_dir: PathBuf::from("capstan-data"),
            tokens: Vec::new(),
            payload_max_bytes: 16 << 20,
            blob_threshold_bytes: 32 << 10,
            rate_per_s: 200,
            rate_burst: 1000,
            rate_burst_s: 5,
            keda_listen: String::new(),
            keda_open: false,
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

impl SchedulerConfig {
    /// Where KEDA is served, if anywhere.
    pub fn keda_address(&self) -> Result<Option<SocketAddr>, String> {
        if self.keda_listen.is_empty() {
            return Ok(None);
        }
        let read = self.keda_listen.parse().map(Some);
        read.map_err(|_| format!("keda_listen must be an address like 127.0.0.1:7071, is `{}`", self.keda_listen))
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
        if !self.listen.ip().is_loopback() && self.tokens.is_empty() {
            return Err(format!(
                "listening on {} needs authentication: set `tokens` (or CAPSTAN_TOKENS), or listen on 127.0.0.1",
                self.listen
            ));
        }
        if let Some(keda) = self.keda_address()?
            && !keda.ip().is_loopback()
            && !self.keda_open
        {
            return Err(format!(
                "keda_listen is {keda}, where others can reach it, and KEDA's protocol knows no authentication: set keda_open=true if your network keeps strangers out, or listen on 127.0.0.1"
            ));
        }
        self.prometheus()?;
        if let Some(weak) = self.tokens.iter().find(|t| t.len() < 16) {
            return Err(format!("a token of {} characters is too short: use at least 16", weak.len()));
        }
        if self.rate_per_s == 0 || self.rate_burst == 0 || self.rest_threads == 0 {
            return Err("rate_per_s, rate_burst and rest_threads must be at least 1".into());
        }
        Ok(())
    }
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
        assert_eq!(config.check(), Ok(()));
    }
}
