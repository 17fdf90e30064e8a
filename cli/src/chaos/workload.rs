//! Clients that bring work while the cluster is being hurt, and remember what they were told.

use super::history::History;
use crate::local::LocalCluster;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Functions that are called.
pub const FUNCTIONS: usize = 8;
/// The most containers of each.
pub const MOST: u64 = 3;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a cluster that is not hurt any more may take to be well.
const WELL: Duration = Duration::from_secs(60);
/// How often a request with a key is sent again.
const TRIES: usize = 6;

/// What clients share.
#[derive(Clone)]
pub struct Clients {
    http: reqwest::Client,
    /// Schedulers' addresses.
    urls: Arc<Vec<String>>,
    history: Arc<Mutex<History>>,
}

/// The name of a function.
fn name(n: usize) -> String {
    format!("chaos-{n}")
}

impl Clients {
    /// Clients of these schedulers.
    pub fn new(cluster: &LocalCluster) -> anyhow::Result<Self> {
        let http = cluster.http()?.timeout(PATIENCE).build()?;
        let urls = cluster.schedulers.iter().map(|scheduler| scheduler.url.clone()).collect();
        Ok(Self { http, urls: Arc::new(urls), history: Arc::default() })
    }

    /// What was told.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, random: &mut StdRng, function: usize, verb: &str) -> String {
        let url = &self.urls[random.random_range(0..self.urls.len())];
        format!("{url}/v1/namespaces/default/functions/{}{verb}", name(function))
    }

    /// Deploys the functions: each gives its input back.
    pub async fn deploy(&self) -> anyhow::Result<()> {
        let spec = json!({
            "runtime": {"process": {"command": ["cat"]}}, "protocol": "exec", "resources": {"cpu": 0.25, "cpu_limit": null},
            "autoscaler": {"max_containers": MOST, "scaledown_window": 5},
        });
        for n in 0..FUNCTIONS {
            let url = format!("{}/v1/namespaces/default/functions/{}", self.urls[0], name(n));
            let answer = self.http.put(url).json(&spec).send().await?;
            anyhow::ensure!(answer.status().is_success(), "{}", answer.text().await?);
        }
        Ok(())
    }

    /// One client: it brings work until it is told to stop.
    pub async fn bring(self, seed: u64, stop: watch::Receiver<bool>) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut count = 0u64;
        while !*stop.borrow() {
            count += 1;
            let key = format!("{seed}-{count}");
            match random.random_range(0..10) {
                0..3 => self.spawn(&mut random, &key, &stop).await,
                3..6 => self.spawn_map(&mut random, &key, &stop).await,
                6..9 => self.invoke(&mut random, &key).await,
                _ => self.map(&mut random, &key).await,
            }
            let pause = Duration::from_millis(random.random_range(0..60));
            tokio::time::sleep(pause).await;
        }
    }

    async fn spawn(&self, random: &mut StdRng, key: &str, stop: &watch::Receiver<bool>) {
        let input = json!({"key": key});
        self.send(random, "/spawn", key, input.to_string(), vec![input], stop).await;
    }

    async fn spawn_map(&self, random: &mut StdRng, key: &str, stop: &watch::Receiver<bool>) {
        let inputs: Vec<Value> = (0..random.random_range(1..150)).map(|n| json!({"key": key, "n": n})).collect();
        let body = inputs.iter().map(|input| format!("{input}\n")).collect();
        self.send(random, "/spawn_map", key, body, inputs, stop).await;
    }

    /// Sends a request with a key until it is accepted. One in three is sent again though it was: the key must find the same call.
    async fn send(
        &self,
        random: &mut StdRng,
        verb: &str,
        key: &str,
        body: String,
        inputs: Vec<Value>,
        stop: &watch::Receiver<bool>,
    ) {
        let function = random.random_range(0..FUNCTIONS);
        let mut again = random.random_ratio(1, 3);
        for _ in 0..TRIES {
            let request = self.http.post(self.at(random, function, verb)).header("idempotency-key", key);
            let accepted = match request.body(body.clone()).send().await {
                Ok(answer) if answer.status().as_u16() == 202 => answer.json::<Value>().await.ok(),
                _ => None,
            };
            let call = accepted.as_ref().and_then(|answer| answer["call_id"].as_str());
            match call {
                Some(call) => {
                    self.history().accepted(key, call, inputs.clone());
                    if !std::mem::take(&mut again) {
                        return;
                    }
                }
                None => self.history().refused += 1,
            }
            if *stop.borrow() && call.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(10..400))).await;
        }
    }

    /// Once nothing is hurt any more, every scheduler takes work for every function.
    pub async fn prove_well(&self, seed: u64) {
        let begun = std::time::Instant::now();
        for (at, url) in self.urls.iter().enumerate() {
            for n in 0..FUNCTIONS {
                let key = format!("well-{seed}-{at}-{n}");
                let input = json!({"key": key});
                let address = format!("{url}/v1/namespaces/default/functions/{}/spawn", name(n));
                let call = loop {
                    let request = self.http.post(&address).header("idempotency-key", &key).body(input.to_string());
                    let told = match request.send().await {
                        Ok(answer) => answer.json::<Value>().await.unwrap_or_default(),
                        Err(_) => Value::Null,
                    };
                    if let Some(call) = told["call_id"].as_str() {
                        break call.to_owned();
                    }
                    if begun.elapsed() > WELL {
                        self.history().broken.push(format!("{url} takes no work for {}: {told}", name(n)));
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                };
                self.history().accepted(&key, &call, vec![input]);
            }
        }
    }

    async fn invoke(&self, random: &mut StdRng, key: &str) {
        let input = json!({"invoked": key});
        let function = random.random_range(0..FUNCTIONS);
        let sent = self.http.post(self.at(random, function, "/invoke")).body(input.to_string()).send().await;
        let output = match sent {
            Ok(answer) if answer.status().as_u16() == 200 => answer.json::<Value>().await.ok(),
            _ => None,
        };
        let mut history = self.history();
        match output {
            Some(output) => history.answered(key, &input, &output),
            None => history.refused += 1,
        }
    }

    async fn map(&self, random: &mut StdRng, key: &str) {
        let inputs: Vec<Value> = (0..random.random_range(1..60)).map(|n| json!({"mapped": key, "n": n})).collect();
        let body: String = inputs.iter().map(|input| format!("{input}\n")).collect();
        let function = random.random_range(0..FUNCTIONS);
        let sent = self.http.post(self.at(random, function, "/map")).body(body).send().await;
        let text = match sent {
            Ok(answer) if answer.status().as_u16() == 200 => answer.text().await.ok(),
            _ => None,
        };
        let mut history = self.history();
        let Some(text) = text else {
            history.refused += 1;
            return;
        };
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let index = line["index"].as_u64().unwrap_or(u64::MAX) as usize;
            // A map that broke off tells of errors; what it tells as an output must be one.
            if let (Some(input), Some(output)) = (inputs.get(index), line.get("output")) {
                history.answered(key, input, output);
            }
        }
    }

    /// Asks again and again until somebody answers well.
    async fn ask(&self, path: &str, most: Duration) -> Option<Value> {
        let begun = std::time::Instant::now();
        for url in self.urls.iter().cycle() {
            if let Ok(answer) = self.http.get(format!("{url}{path}")).send().await
                && answer.status().is_success()
                && let Ok(text) = answer.text().await
            {
                let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
                if let Ok(lines) = lines {
                    return Some(Value::Array(lines));
                }
            }
            if begun.elapsed() > most {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Waits for a call's end and reads its results.
    pub async fn settle(&self, call: &str, most: Duration) {
        let begun = std::time::Instant::now();
        loop {
            let view = self.ask(&format!("/v1/calls/{call}"), most).await;
            let view = view.map(|mut lines| lines[0].take());
            if view.as_ref().is_some_and(|view| view["finished_at"].is_string()) {
                break;
            }
            if begun.elapsed() > most {
                let seen = view.map_or("nothing".into(), |view| view.to_string());
                self.history().broken.push(format!("{call} does not end: {seen}"));
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let lines = self.ask(&format!("/v1/calls/{call}/results?ordered=true"), most).await;
        let lines = lines.and_then(|lines| lines.as_array().cloned()).unwrap_or_default();
        self.history().ended(call, &lines);
    }

    /// Looks whether any function has more containers than it may.
    pub async fn look_at_limits(&self) {
        for url in self.urls.iter() {
            let Ok(answer) = self.http.get(format!("{url}/v1/containers")).send().await else { continue };
            let Ok(view) = answer.json::<Value>().await else { continue };
            let mut counts = std::collections::BTreeMap::<String, u64>::new();
            for container in view["containers"].as_array().into_iter().flatten() {
                if matches!(container["state"].as_str(), Some("starting" | "idle" | "busy")) {
                    *counts.entry(container["function"].to_string()).or_default() += 1;
                }
            }
            for (function, count) in counts.into_iter().filter(|(_, count)| *count > MOST) {
                self.history().broken.push(format!("{function} has {count} containers, and may have {MOST}"));
            }
        }
    }
}
