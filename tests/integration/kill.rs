//! kill -9 of the whole process at random moments: every accepted input ends once, with the right output.

use capstan_tests::real::{Up, echo};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// Kills in one run; CAPSTAN_KILLS sets another number for a long run.
fn kills() -> u32 {
    std::env::var("CAPSTAN_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

/// Inputs of one upload.
fn inputs() -> u64 {
    std::env::var("CAPSTAN_KILL_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

/// Kills after which all calls so far are seen to their end.
const CHECKED_AFTER: u32 = 20;

fn function() -> Value {
    let more = json!({"concurrency": {"max_inputs": 4}, "autoscaler": {"max_containers": 4}});
    echo("", more).expect("the echo server is built")
}

struct Seed(u64);

impl Seed {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Sends an upload again with its key; answers the call.
async fn send_again(up: &Up, key: &str, body: &str) -> String {
    let request = up.http.post(up.function("f", "/spawn_map")).header("Idempotency-Key", key).body(body.to_owned());
    let answer: Value = request.send().await.expect("sent").json().await.expect("an answer");
    answer["call_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

async fn check(up: &Up, call: &str, count: u64) {
    let results = up.results(call).await.expect("results");
    let mut ended: BTreeMap<u64, u32> = BTreeMap::new();
    for line in &results {
        let index = line["index"].as_u64().expect("an index");
        assert_eq!(line["output"], json!(index), "{line}");
        *ended.entry(index).or_default() += 1;
    }
    assert_eq!(ended.len() as u64, count, "inputs of {call} that ended");
    assert!(ended.values().all(|n| *n == 1), "an input of {call} ended twice");
}

/// Orphans of a dead worker would answer on; none may be left.
fn echo_servers() -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let marked = |path: std::path::PathBuf, mark: &str| {
        std::fs::read(path).is_ok_and(|bytes| bytes.windows(mark.len()).any(|w| w == mark.as_bytes()))
    };
    let own = format!("CAPSTAN_KILL_TEST={}", std::process::id());
    entries.filter(|e| marked(e.path().join("environ"), &own)).count()
}

#[tokio::test]
async fn killed_at_random_moments_every_accepted_input_ends_exactly_once() {
    // SPEC G09 G13, RELIABILITY F1 F17 I1 I2 I3 L2
    let folder = capstan_tests::real::shared_folder().expect("a folder");
    let data = folder.path().join("data");
    let mut seed = Seed(std::env::var("CAPSTAN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1));
    let body: String = (0..inputs()).map(|n| format!("{n}\n")).collect();
    let mut spec = function();
    spec["runtime"]["process"]["env"] = json!({"CAPSTAN_KILL_TEST": std::process::id().to_string()});
    let mut up = Up::start(&data, &[]).expect("capstan up");
    up.deploy("f", spec).await.expect("deployed");
    let mut checked = 0;
    let (mut accepted, mut keyed): (Vec<String>, BTreeMap<String, Option<String>>) = Default::default();
    for round in 0..kills() {
        // With a key in every other round: the client sends again after the kill until it hears an answer.
        let key = (round % 2 == 0).then(|| format!("round-{round}"));
        let mut request = up.http.post(up.function("f", "/spawn_map")).body(body.clone());
        if let Some(key) = &key {
            request = request.header("Idempotency-Key", key);
            keyed.insert(key.clone(), None);
        }
        let upload = tokio::spawn(request.send());
        tokio::time::sleep(Duration::from_millis(seed.below(400))).await;
        up.kill().expect("killed");
        if let Ok(Ok(response)) = upload.await
            && response.status().as_u16() == 202
            && let Ok(answer) = response.json::<Value>().await
        {
            let id = answer["call_id"].as_str().expect("an id").to_owned();
            match key {
                Some(key) => drop(keyed.insert(key, Some(id))),
                None => accepted.push(id),
            }
        }
        up = Up::start(&data, &[]).expect("capstan up again");
        for (key, heard) in keyed.iter_mut().filter(|(_, heard)| heard.is_none()) {
            *heard = Some(send_again(&up, key, &body).await);
        }
        // A long run would fill the queue: what was accepted so far is seen to its end now and then.
        if round % CHECKED_AFTER == CHECKED_AFTER - 1 {
            for call in accepted.drain(..).chain(std::mem::take(&mut keyed).into_values().flatten()) {
                check(&up, &call, inputs()).await;
                checked += 1;
            }
        }
    }
    for (key, heard) in &keyed {
        assert_eq!(*heard, Some(send_again(&up, key, &body).await), "the key {key} made two calls");
    }
    accepted.extend(keyed.into_values().flatten());
    assert!(!accepted.is_empty() || checked > 0);
    for call in &accepted {
        check(&up, call, inputs()).await;
    }
    assert!(up.stop().expect("stopped").success());
    assert_eq!(echo_servers(), 0, "containers outlived their worker");
}

#[tokio::test]
async fn a_worker_killed_together_with_its_scheduler_leaves_no_process() {
    // RELIABILITY F15 R2
    let folder = capstan_tests::real::shared_folder().expect("a folder");
    let mut up = Up::start(&folder.path().join("data"), &[]).expect("capstan up");
    let mark = format!("{}", folder.path().display());
    let spec = json!({
        "runtime": {"process": {"command": ["sh", "-c", "setsid sleep 1000 & sleep 1000 & exec sleep 1000"], "env": {"CAPSTAN_TEST_MARK": mark}}},
        "protocol": "exec",
    });
    up.deploy("f", spec).await.expect("deployed");
    up.post(&up.function("f", "/spawn"), "1").await.expect("spawned");
    let alive = || {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let environs = entries.filter_map(|e| std::fs::read(e.path().join("environ")).ok());
        environs.filter(|e| e.windows(mark.len()).any(|w| w == mark.as_bytes())).count()
    };
    let begun = std::time::Instant::now();
    while alive() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "its processes did not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    up.kill().expect("killed");
    let begun = std::time::Instant::now();
    while alive() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{} processes are left", alive());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_new_scheduler_adopts_what_the_worker_still_runs_and_takes_what_it_finished() {
    // RELIABILITY F1 I6
    let folder = capstan_tests::real::shared_folder().expect("a folder");
    let (data, link) = (folder.path().join("data"), folder.path().join("link"));
    let link = link.display().to_string();
    let half = |half: &'static str| Up::start(&data, &["--half", half, "--link", &link]);
    let mut scheduler = half("scheduler").expect("a scheduler");
    let _worker =
        Up::start(&data, &["--half", "worker", "--link", &link, "--set", "worker.name=alone"]).expect("a worker");
    let runs = folder.path().join("runs");
    let script = format!("read s; echo x >> {}; sleep $s; echo $s", runs.display());
    let spec = json!({"runtime": {"process": {"command": ["sh", "-c", script]}}, "protocol": "exec"});
    scheduler.deploy("f", spec).await.expect("deployed");
    let mut calls = Vec::new();
    // One ends while there is no scheduler, one after the new one has come.
    for seconds in ["0.5", "4"] {
        let (status, call) = scheduler.post(&scheduler.function("f", "/spawn"), seconds).await.expect("spawned");
        assert_eq!(status, 202);
        calls.push(call["call_id"].as_str().expect("an id").to_owned());
    }
    scheduler.until("f", Duration::from_secs(20), |s| s["running"] == 2).await.expect("both run");
    while std::fs::read_to_string(&runs).unwrap_or_default().lines().count() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scheduler.kill().expect("killed");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let scheduler = half("scheduler").expect("a new scheduler");
    for (call, output) in calls.iter().zip([json!(0.5), json!(4)]) {
        assert_eq!(scheduler.results(call).await.expect("results")[0]["output"], output);
    }
    assert_eq!(std::fs::read_to_string(&runs).expect("runs").lines().count(), 2, "an attempt was run again");
}
