//! A real Prometheus that scrapes Capstan, and one that Capstan asks.

use crate::fresh;
use capstan_tests::real::{Up, binary, echo, spec};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(40);
const REQUESTS: &str = "vllm:request_success_total";

/// Debian's Prometheus on a free port. Ends with it.
struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    /// Scrapes `targets` (a name and an address) and what the file beside its configuration lists.
    fn start(folder: &Path, targets: &[(&str, &str)]) -> Self {
        let jobs: String = targets
            .iter()
            .map(|(name, address)| {
                format!("  - job_name: {name}\n    static_configs: [{{targets: [\"{address}\"]}}]\n")
            })
            .collect();
        let config = folder.join("prometheus.yml");
        let found = folder.join("found.json");
        std::fs::write(&found, "[]").unwrap();
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n{jobs}  - job_name: found\n    honor_labels: true\n    file_sd_configs: [{{files: [\"{}\"], refresh_interval: 1s}}]\n",
            found.display()
        );
        std::fs::write(&config, text).unwrap();
        // Free while nobody takes it: the next moment it is Prometheus' own.
        let port = capstan::local::free_ports(1).unwrap()[0];
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(folder.join("prometheus.log")).unwrap()))
            .spawn()
            .expect("the package prometheus; test.sh installs it");
        Self { child, url: format!("http://127.0.0.1:{port}") }
    }

    /// What it answers to a query: label sets and values.
    async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/query", self.url)).expect("an address");
        url.query_pairs_mut().append_pair("query", query);
        let Ok(answer) = reqwest::get(url).await else { return Vec::new() };
        let answer: Value = answer.json().await.unwrap_or_default();
        let found = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let value = |sample: &Value| sample["value"][1].as_str().and_then(|v| v.parse().ok());
        found.iter().filter_map(|sample| Some((sample["metric"].clone(), value(sample)?))).collect()
    }

    /// Asks again and again until the answer is as asked.
    async fn until(&self, query: &str, asked: impl Fn(&[(Value, f64)]) -> bool) -> Vec<(Value, f64)> {
        let begun = tokio::time::Instant::now();
        loop {
            let answer = self.query(query).await;
            if asked(&answer) {
                return answer;
            }
            assert!(begun.elapsed() < SOON, "{query} did not come to it: {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address(up: &Up) -> &str {
    up.url.trim_start_matches("http://")
}

async fn enable(up: &Up, retention: &str) {
    let config = json!({"default": {"enable_scale_to_zero": true, "retention_period": retention}});
    let put = up.http.put(up.at("/v1/scale-to-zero")).json(&config).send().await.unwrap();
    assert_eq!(put.status().as_u16(), 200);
}

#[tokio::test]
async fn a_real_prometheus_answers_the_guides_queries_from_what_it_scraped() {
    // SPEC P05 T07 U03 V04 V05 W09, decisions D12 D13
    let (folder, up) = fresh(&[]);
    enable(&up, "3s").await;
    let model = json!({"model_id": "meta/llama-3.1-8b", "autoscaler": {"scaledown_window": 1}});
    up.deploy("llama-8b-autoscaler", echo("", model).unwrap()).await.unwrap();
    let prometheus = Prometheus::start(folder.path(), &[("capstan", address(&up))]);
    // The trigger of the guide's ScaledObject: exactly one series, an explicit zero while the model idles.
    let trigger = r#"inferno_desired_replicas{variantautoscaling_name="llama-8b-autoscaler",variantautoscaling_namespace="default"}"#;
    let idle = prometheus.until(trigger, |a| a.len() == 1 && a[0].1 == 0.0).await;
    let labels = &idle[0].0;
    assert_eq!((&labels["variant_name"], &labels["namespace"]), (&json!("llama-8b-autoscaler"), &json!("default")));
    let counted = format!(r#"{REQUESTS}{{model_name="meta/llama-3.1-8b"}}"#);
    prometheus.until(&counted, |a| a.len() == 1 && a[0].1 == 0.0).await;
    for n in 0..42 {
        assert_eq!(up.invoke("llama-8b-autoscaler", json!(n)).await.unwrap().0, 200);
    }
    prometheus.until(trigger, |a| a.len() == 1 && a[0].1 == 1.0).await;
    let increase =
        r#"sum(increase(vllm:request_success_total{namespace="default",model_name="meta/llama-3.1-8b"}[10m]))"#;
    let answer = prometheus.until(increase, |a| a.len() == 1 && a[0].1 >= 41.0).await;
    assert!(answer[0].1 < 60.0, "Prometheus extrapolates, but not as far as that: {answer:?}");
    // After its retention the metric is zero again, and an HPA with its gate on follows.
    let zero = prometheus.until(trigger, |a| a.len() == 1 && a[0].1 == 0.0).await;
    assert_eq!(replicas(1.0), 1);
    assert_eq!(replicas(zero[0].1), 0);
    for shown in ["wva_desired_replicas", "capstan_cold_starts_total", "capstan_desired_containers"] {
        assert!(!prometheus.query(shown).await.is_empty(), "{shown}");
    }
}

/// What Kubernetes' documented rule for a metric with an average value makes of the guide's manifest.
fn replicas(metric: f64) -> u64 {
    let manifest = include_str!("../../deploy/kubernetes/hpa.yaml");
    let number = |name: &str| -> f64 {
        let (_, after) = manifest.split_once(&format!("{name}: ")).expect("the manifest's field");
        after.lines().next().unwrap().trim_matches('"').parse().unwrap()
    };
    (metric / number("averageValue")).ceil().clamp(number("minReplicas"), number("maxReplicas")) as u64
}

#[tokio::test]
async fn capstan_asks_a_real_prometheus_before_a_models_last_container_leaves() {
    // SPEC P02 P03 V02 V03 V04 V06, decision D9
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(folder.path(), &[]);
    let set = format!("scheduler.prometheus_url={}", prometheus.url);
    let up = Up::start_with(&folder.path().join("data"), &["--set", &set], |command| {
        command.env("RUST_LOG", "info,capstan_scheduler::actor::prometheus=debug");
    })
    .unwrap();
    enable(&up, "6s").await;
    let program = binary("web-server").unwrap().display().to_string();
    let activity = json!({"source": "prometheus", "interval_s": 1});
    let model = json!({"model_id": "m", "activity": activity, "autoscaler": {"scaledown_window": 1}});
    up.deploy("site", spec(&[&program], "http", model)).await.unwrap();
    let first = up.http.get(up.at("/web/default/site/show")).send().await.unwrap();
    assert_eq!(first.status().as_u16(), 200);
    let listed = up.get("/v1/containers?function=site").await.unwrap();
    let server = listed["containers"][0]["address"].as_str().unwrap().to_owned();
    // Its retention has passed by what Capstan knows, and Prometheus knows nothing of it: it stays.
    let reason = async || {
        let explained = up.get("/v1/namespaces/default/functions/site/explain").await.unwrap();
        explained["decisions"][0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    let log = || std::fs::read_to_string(folder.path().join("data.2.log")).unwrap();
    let begun = tokio::time::Instant::now();
    while !log().contains(r#""requests":"Missing""#) {
        assert!(begun.elapsed() < SOON, "Prometheus was not asked: {}", log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let alive = async || up.http.get(format!("http://{server}/hit")).send().await.is_ok();
    assert!(alive().await, "unknown is not zero");
    // Now Prometheus scrapes it, and it has requests that Capstan does not see.
    let found = json!([{"targets": [server], "labels": {"namespace": "default"}}]);
    std::fs::write(folder.path().join("found.json"), found.to_string()).unwrap();
    let begun = tokio::time::Instant::now();
    while !log().contains(r#""requests":"Counted("#) || begun.elapsed() < Duration::from_secs(9) {
        assert!(alive().await, "it has requests: {}", reason().await);
        assert!(begun.elapsed() < SOON, "{}", log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    up.until("site", SOON, |s| s["containers"]["idle"] == 0 && s["desired"] == 0).await.unwrap();
    assert!(log().contains("model_request_count") && log().contains("scale to zero"));
    let refused = spec(&[&program], "http", json!({"activity": {"source": "prometheus"}}));
    let refused = up.http.put(up.function("nameless", "")).json(&refused).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 422, "a model's requests need a model");
}

#[tokio::test]
async fn a_prometheus_that_nobody_named_cannot_be_asked() {
    let (_folder, up) = fresh(&[]);
    let asks = echo("", json!({"model_id": "m", "activity": {"source": "prometheus"}})).unwrap();
    let refused = up.http.put(up.function("m", "")).json(&asks).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 422);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["errors"][0]["pointer"], "/activity/source");
}
