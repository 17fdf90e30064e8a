//! Several schedulers and workers over a real etcd, and what happens when they die, pause and come back.

use capstan::local::{Mode, Size};
use capstan_tests::{
    cluster::{Cluster, eventually, lines},
    real::{binary, spec},
};
use reqwest::{
    Client,
    header::{AUTHORIZATION, HeaderMap},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::Path, time::Duration};

/// Brings work and waits for its end.
trait Work {
    async fn call(&self, scheduler: usize, name: &str, verb: &str, body: String) -> String;
    async fn ended(&self, scheduler: usize, call: &str) -> Value;
    async fn outputs(&self, scheduler: usize, call: &str) -> Vec<Value>;
    async fn roles(&self, name: &str) -> (usize, usize);
}

impl Work for Cluster {
    async fn call(&self, scheduler: usize, name: &str, verb: &str, body: String) -> String {
        let sent = self.http.post(self.function(scheduler, name, verb)).body(body).send().await.unwrap();
        let (status, answer) = (sent.status().as_u16(), sent.json::<Value>().await.unwrap());
        assert_eq!(status, 202, "{answer}");
        answer["call_id"].as_str().unwrap().to_owned()
    }

    /// Waits for a call's end, whoever owns it meanwhile.
    async fn ended(&self, scheduler: usize, call: &str) -> Value {
        eventually(&format!("the end of {call}"), async || {
            let view = self.get(scheduler, &format!("/v1/calls/{call}")).await;
            view["finished_at"].is_string().then_some(view)
        })
        .await
    }

    /// The outputs of an ended call: each input once.
    async fn outputs(&self, scheduler: usize, call: &str) -> Vec<Value> {
        let path = format!("/v1/calls/{call}/results?ordered=true");
        let text = self.http.get(self.at(scheduler, &path)).send().await.unwrap().text().await.unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let indexes: BTreeSet<u64> = lines.iter().map(|line| line["index"].as_u64().unwrap()).collect();
        assert_eq!(indexes.len(), lines.len(), "an input ended twice");
        lines.into_iter().map(|mut line| line["output"].take()).collect()
    }

    /// The scheduler that owns a function, and one that does not.
    async fn roles(&self, name: &str) -> (usize, usize) {
        let owner = self.owner(0, name).await;
        (owner, (owner + 1) % self.local.schedulers.len())
    }
}

/// Writes a line for each run, waits, and gives its input back.
fn slow(log: &Path, seconds: f64) -> Value {
    let script = format!("echo run >> {}; sleep {seconds}; cat", log.display());
    spec(&["sh", "-c", &script], "exec", json!({"resources": {"cpu": 0.25}}))
}

fn echo() -> Value {
    spec(&["cat"], "exec", json!({"resources": {"cpu": 0.25}}))
}

/// Waits until so many runs have begun.
async fn runs(log: &Path, count: usize) {
    eventually(&format!("run {count}"), async || (lines(log) >= count).then_some(())).await;
}

#[tokio::test]
async fn any_scheduler_answers_for_any_function() {
    let bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    let names: Vec<String> = (0..12).map(|n| format!("f{n}")).collect();
    for name in &names {
        bench.deploy(name, &echo()).await.unwrap();
    }
    let mut owners = BTreeSet::new();
    for name in &names {
        owners.insert(bench.owner(0, name).await);
    }
    assert!(owners.len() > 1, "all lie with one scheduler");
    for scheduler in 0..3 {
        for name in &names {
            let (status, output) = bench.invoke(scheduler, name, "[1,2]").await;
            assert_eq!((status, output), (200, json!([1, 2])), "{name} at {scheduler}");
        }
        let listed = bench.get(scheduler, "/v1/namespaces/default/functions?limit=5").await;
        let found: Vec<&str> =
            listed["functions"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
        assert_eq!(found, ["f0", "f1", "f10", "f11", "f2"]);
        let rest = bench
            .get(scheduler, &format!("/v1/namespaces/default/functions?after={}", listed["next"].as_str().unwrap()))
            .await;
        assert_eq!(rest["functions"].as_array().unwrap().len(), 7);
        assert_eq!(
            bench.get(scheduler, "/v1/calls?limit=1000").await["calls"].as_array().unwrap().len(),
            12 * (scheduler + 1)
        );
        let listed = bench.get(scheduler, "/v1/containers").await["containers"].take();
        let containers = listed.as_array().unwrap();
        assert!(containers.len() >= 12);
        // Where each went is a decision with a reason.
        let reason = |container: &Value| container["placement"]["reason"] == "most_free_cpu";
        assert!(containers.iter().all(reason), "{containers:?}");
    }
    // A map streams both ways through a scheduler that does not own the function.
    let (_, other) = bench.roles("f0").await;
    let body: String = (0..3_000).map(|n| format!("{n}\n")).collect();
    let text =
        bench.http.post(bench.function(other, "f0", "/map")).body(body).send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().count(), 3_000);
    let missing = bench.invoke(other, "nobody", "1").await;
    assert_eq!((missing.0, &missing.1["code"]), (404, &json!("not_found")));
}

#[tokio::test]
async fn a_functions_token_opens_every_scheduler_while_its_container_lives_and_none_afterwards() {
    let mut bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    // While a door is open everybody is the operator; a token closes it.
    let admin = json!({"name": "admin", "role": "admin"});
    let made: Value =
        bench.http.post(bench.at(0, "/v1/tokens")).json(&admin).send().await.unwrap().json().await.unwrap();
    let bearer = format!("Bearer {}", made["token"].as_str().unwrap());
    let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer.parse().unwrap())]);
    let stranger = std::mem::replace(&mut bench.http, Client::builder().default_headers(headers).build().unwrap());
    let tells = ["sh", "-c", "cat > /dev/null; printf '\"%s\"' \"$CAPSTAN_TOKEN\""];
    let mut tokens = Vec::new();
    for n in 0..6 {
        let name = format!("f{n}");
        bench.deploy(&name, &spec(&tells, "exec", json!({"resources": {"cpu": 0.25}}))).await.unwrap();
        let (status, token) = bench.invoke(n % 3, &name, "1").await;
        assert_eq!(status, 200, "{token}");
        tokens.push((name, token.as_str().unwrap().to_owned()));
    }
    let asks = async |scheduler: usize, token: &str| {
        let asked = stranger.get(bench.at(scheduler, "/v1/namespaces/default/functions"));
        asked.bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    let mut owners = BTreeSet::new();
    for (name, token) in &tokens {
        owners.insert(bench.owner(0, name).await);
        for scheduler in 0..3 {
            assert_eq!(asks(scheduler, token).await, 200, "{name} at {scheduler}");
            let invoked = stranger.post(bench.function(scheduler, name, "/invoke")).bearer_auth(token).body("1");
            assert_eq!(invoked.send().await.unwrap().status(), 200, "{name} by {scheduler}");
        }
    }
    assert!(owners.len() > 1, "all lie with one scheduler");
    for (name, token) in &tokens {
        let removed = bench.http.delete(bench.function(0, name, "")).send().await.unwrap();
        assert!(removed.status().is_success(), "{}", removed.status());
        for scheduler in 0..3 {
            let closed = async || (asks(scheduler, token).await == 401).then_some(());
            eventually(&format!("{name}'s token to be refused at {scheduler}"), closed).await;
        }
    }
}

#[tokio::test]
async fn events_and_models_are_those_of_all_schedulers() {
    let bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    let mut listening = bench.http.get(bench.at(0, "/v1/events")).send().await.unwrap();
    // Models of different functions, at least two of them with different owners.
    let names: Vec<String> = (0..8).map(|n| format!("model{n}")).collect();
    let mut owners = BTreeSet::new();
    for name in &names {
        let more = json!({"resources": {"cpu": 0.25}, "model_id": name});
        bench.deploy(name, &spec(&["cat"], "exec", more)).await.unwrap();
        assert_eq!(bench.invoke(1, name, "1").await.0, 200);
        owners.insert(bench.owner(0, name).await);
    }
    assert!(owners.len() > 1, "all lie with one scheduler");
    let mut text = String::new();
    let told = |text: &str, name: &str| {
        let ready = |line: &str| line.contains("\"container_ready\"") && line.contains(&format!("\"{name}\""));
        text.lines().any(ready)
    };
    while !names.iter().all(|name| told(&text, name)) {
        let piece = tokio::time::timeout(Duration::from_secs(30), listening.chunk()).await;
        let piece = piece.unwrap_or_else(|_| panic!("no more events: {text}")).unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let sum = "sum(increase(vllm:request_success_total%5B10m%5D))";
    for scheduler in 0..3 {
        eventually("all models' requests", async || {
            let answer = bench.get(scheduler, &format!("/api/v1/query?query={sum}")).await;
            (answer["data"]["result"][0]["value"][1] == "8").then_some(())
        })
        .await;
        let one = bench.get(scheduler, "/api/v1/query?query=inferno_desired_replicas").await;
        assert_eq!(one["data"]["result"].as_array().unwrap().len(), 8, "{one}");
    }
}

#[tokio::test]
async fn a_killed_scheduler_is_replaced_and_what_runs_goes_on() {
    // RELIABILITY F1 I1 I3 L1
    let mut bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    let log = bench.folder.path().join("runs");
    bench.deploy("slow", &slow(&log, 6.0)).await.unwrap();
    bench.deploy("echo", &echo()).await.unwrap();
    let (owner, other) = bench.roles("slow").await;
    let running = bench.call(other, "slow", "/spawn", "[7]".into()).await;
    runs(&log, 1).await;
    let many = bench.call(other, "slow", "/spawn_map", "1\n2\n3\n".into()).await;
    bench.local.schedulers[owner].process.kill().await.unwrap();
    // Everything is reached at the others, also what the dead one owned.
    let (status, output) = bench.invoke(other, "echo", "1").await;
    assert_eq!((status, output), (200, json!(1)));
    bench.ended(other, &running).await;
    assert_eq!(bench.outputs(other, &running).await, [json!([7])]);
    assert_eq!(bench.ended(other, &many).await["inputs"]["succeeded"], 3);
    assert_eq!(lines(&log), 4, "what ran when the scheduler died was run again");
    // It comes back, and takes its share again.
    bench.local.heal().unwrap();
    let back = bench.local.schedulers[owner].process.name().to_owned();
    eventually("its share", async || {
        let view = bench.get(other, "/v1/schedulers").await;
        let shares = |s: &Value| s["name"] == *back && s["shards"].as_array().is_some_and(|shards| !shards.is_empty());
        view["schedulers"].as_array()?.iter().any(shares).then_some(())
    })
    .await;
    // More shards may change hands just now: who gives one up waits for a request of moments, not for one of many seconds.
    assert_eq!(bench.invoke(owner, "echo", "5").await, (200, json!(5)));
}

#[tokio::test]
async fn a_scheduler_that_was_stopped_for_longer_than_its_lease_does_no_harm() {
    // RELIABILITY F2 I4 I5
    let mut bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    bench.deploy("echo", &echo()).await.unwrap();
    let (owner, other) = bench.roles("echo").await;
    let body: String = (0..900).map(|n| format!("{n}\n")).collect();
    let call = bench.call(other, "echo", "/spawn_map", body).await;
    eventually("the first outcomes", async || {
        let view = bench.get(other, &format!("/v1/calls/{call}")).await;
        (view["inputs"]["succeeded"].as_u64()? >= 50).then_some(())
    })
    .await;
    bench.local.schedulers[owner].process.pause(true).unwrap();
    // A question that was passed on to it does not wait until it wakes.
    let stats = bench.get(other, "/v1/namespaces/default/functions/echo/stats").await;
    assert!(stats["backlog"].is_u64(), "{stats}");
    let next = eventually("another owner", async || {
        let next = bench.owner(other, "echo").await;
        (next != owner).then_some(next)
    })
    .await;
    // It wakes in the middle of the new owner's work, and believes for a moment that it owns.
    bench.local.schedulers[owner].process.pause(false).unwrap();
    bench.ended(other, &call).await;
    let outputs = bench.outputs(next, &call).await;
    assert!(outputs.iter().eq((0..900).map(|n| json!(n)).collect::<Vec<_>>().iter()), "{} outputs", outputs.len());
    // And it has a new life among the others.
    assert_eq!(bench.invoke(owner, "echo", "3").await, (200, json!(3)));
}

#[tokio::test]
async fn a_scheduler_that_ends_in_order_hands_its_functions_over_and_no_request_fails() {
    // RELIABILITY §3.2, planned hand-over.
    let mut bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    bench.deploy("echo", &echo()).await.unwrap();
    let (owner, other) = bench.roles("echo").await;
    let (url, http) = (bench.function(other, "echo", "/invoke"), bench.http.clone());
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let asking = tokio::spawn(async move {
        let mut answers = 0;
        while !*stopped.borrow_and_update() {
            let sent = http.post(&url).body("1").send().await.unwrap();
            let status = sent.status().as_u16();
            assert_eq!(status, 200, "after {answers}: {}", sent.text().await.unwrap());
            answers += 1;
        }
        answers
    });
    bench.invoke(other, "echo", "1").await;
    bench.local.schedulers[owner].process.stop().await.unwrap();
    assert_ne!(bench.owner(other, "echo").await, owner);
    assert_eq!(bench.invoke(other, "echo", "2").await.0, 200);
    stop.send(true).unwrap();
    assert!(asking.await.unwrap() > 0);
}

#[tokio::test]
async fn a_list_that_lacks_what_a_silent_scheduler_owns_says_so() {
    let mut bench = Cluster::start(Size { etcd: 1, schedulers: 2, workers: 1, ..Size::default() }).await.unwrap();
    bench.deploy("echo", &echo()).await.unwrap();
    let silent = async |bench: &Cluster| {
        let answer = bench.http.get(bench.at(0, "/v1/containers")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.headers().get("capstan-silent").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(silent(&bench).await, None);
    bench.local.schedulers[1].process.pause(true).unwrap();
    assert_eq!(silent(&bench).await, Some(bench.local.schedulers[1].url.clone()));
    bench.local.schedulers[1].process.pause(false).unwrap();
    eventually("a whole list", async || silent(&bench).await.is_none().then_some(())).await;
}

#[tokio::test]
async fn what_runs_while_a_shard_changes_hands_is_not_run_again() {
    // RELIABILITY §3.2: a worker's report that reaches the owner before is the next owner's, and not forgotten.
    let mut bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    let log = bench.folder.path().join("runs");
    bench.deploy("slow", &slow(&log, 0.03)).await.unwrap();
    let (mut ended, mut calls) = (0, Vec::new());
    for _ in 0..3 {
        let (owner, other) = bench.roles("slow").await;
        let body: String = (0..250).map(|n| format!("{n}\n")).collect();
        calls.push(bench.call(other, "slow", "/spawn_map", body).await);
        runs(&log, ended + 20).await;
        bench.local.schedulers[owner].process.stop().await.unwrap();
        bench.local.heal().unwrap();
        bench.local.schedulers[owner].process.first_line(Duration::from_secs(60)).await.unwrap();
        for call in &calls {
            bench.ended(other, call).await;
            assert_eq!(bench.outputs(other, call).await.len(), 250);
        }
        ended += 250;
        assert_eq!(lines(&log), ended, "some ran again");
    }
}

#[tokio::test]
async fn a_scheduler_that_is_told_to_end_while_etcd_does_not_answer_ends_and_nothing_is_lost() {
    let mut bench = Cluster::start(Size { etcd: 1, ..Size::default() }).await.unwrap();
    bench.deploy("echo", &echo()).await.unwrap();
    let (owner, other) = bench.roles("echo").await;
    let body: String = (0..400).map(|n| format!("{n}\n")).collect();
    let call = bench.call(other, "echo", "/spawn_map", body).await;
    bench.local.schedulers[owner].to_etcd.iter().for_each(|proxy| proxy.set(Mode::Hold));
    let begun = std::time::Instant::now();
    bench.local.schedulers[owner].process.stop().await.unwrap();
    // A supervisor would have killed it after 30 s.
    assert!(begun.elapsed() < Duration::from_secs(28), "{:?}", begun.elapsed());
    bench.ended(other, &call).await;
    assert_eq!(bench.outputs(other, &call).await.len(), 400);
}

#[tokio::test]
async fn a_dead_workers_inputs_run_elsewhere_and_a_cut_off_one_keeps_its_own() {
    // RELIABILITY F4 F15 I6
    let size = Size { etcd: 1, schedulers: 2, workers: 2, ..Size::default() };
    let mut bench = Cluster::start(size).await.unwrap();
    let log = bench.folder.path().join("runs");
    bench.deploy("slow", &slow(&log, 4.0)).await.unwrap();
    let body: String = (0..8).map(|n| format!("{n}\n")).collect();
    let call = bench.call(0, "slow", "/spawn_map", body.clone()).await;
    runs(&log, 8).await;
    // A short partition of both schedulers from all workers: nothing is run again.
    bench.local.schedulers.iter().for_each(|s| s.from_workers.set(Mode::Hold));
    // How long it lasts.
    tokio::time::sleep(Duration::from_secs(2)).await;
    bench.local.schedulers.iter().for_each(|s| s.from_workers.set(Mode::Pass));
    bench.ended(0, &call).await;
    assert_eq!((bench.outputs(1, &call).await.len(), lines(&log)), (8, 8));
    // A worker that dies takes its runs along: they run again elsewhere.
    let call = bench.call(0, "slow", "/spawn_map", body).await;
    runs(&log, 16).await;
    let held = bench.get(0, "/v1/containers?worker=worker-1").await;
    let busy = held["containers"].as_array().unwrap().iter().filter(|c| c["inputs"].as_u64() > Some(0)).count();
    bench.local.workers[0].kill().await.unwrap();
    bench.ended(0, &call).await;
    assert_eq!(bench.outputs(1, &call).await.len(), 8);
    assert_eq!(lines(&log), 16 + busy, "{busy} were lost with their worker");
}

#[tokio::test]
async fn a_second_worker_of_a_name_is_refused_and_the_first_goes_on() {
    let mut bench = Cluster::start(Size { etcd: 1, schedulers: 1, workers: 1, ..Size::default() }).await.unwrap();
    bench.deploy("echo", &echo()).await.unwrap();
    let link = bench.local.schedulers[0].from_workers.address().to_string();
    let second = |name: &str| {
        let log = std::fs::File::create(bench.folder.path().join("second.log")).unwrap();
        tokio::process::Command::new(binary("capstan-worker").unwrap())
            .args(["--data-dir", bench.folder.path().join("second").to_str().unwrap()])
            .args([format!("--set=worker.name={name}"), format!("--set=worker.schedulers={link}")])
            .arg(format!("--set=worker.blob_dir={}", bench.folder.path().join("blobs").display()))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let mut refused = second("worker-1");
    let log = bench.folder.path().join("second.log");
    eventually("the refusal", async || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.contains("give each its own worker.name").then_some(())
    })
    .await;
    assert_eq!(bench.invoke(0, "echo", "1").await, (200, json!(1)));
    refused.kill().await.unwrap();
    // The next life of a worker that was killed is let in.
    bench.local.workers[0].kill().await.unwrap();
    bench.local.heal().unwrap();
    let (status, output) = bench.invoke(0, "echo", "2").await;
    assert_eq!((status, output), (200, json!(2)));
}

#[test]
fn a_hurt_cluster_keeps_every_promise() {
    // RELIABILITY I1 I2 I3 P3; CAPSTAN_CHAOS gives the number of faults, CAPSTAN_SEED the plan.
    let number = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.into());
    let ran = std::process::Command::new(binary("capstan").unwrap())
        .args(["chaos", "--json", "--seed", &number("CAPSTAN_SEED", "5"), "--faults", &number("CAPSTAN_CHAOS", "12")])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
    assert!(ran.status.success(), "{report} {}", String::from_utf8_lossy(&ran.stderr));
    assert!(report["inputs"].as_u64() > Some(100) && report["broken"] == json!([]), "{report}");
}

#[tokio::test]
async fn who_waits_for_a_silent_etcd_holds_up_nobody_else() {
    let set = ["scheduler.rest_threads=1", "scheduler.etcd.request_ms=30000"].map(str::to_owned);
    let size = Size { etcd: 1, schedulers: 1, workers: 1, set: set.into(), ..Size::default() };
    let mut bench = Cluster::start(size).await.unwrap();
    bench.deploy("f", &echo()).await.unwrap();
    let call = bench.call(0, "f", "/spawn", "1".into()).await;
    bench.ended(0, &call).await;
    // So many later entries that it is not in memory any more.
    for n in 0..40 {
        assert_eq!(bench.invoke(0, "f", &n.to_string()).await.0, 200);
    }
    bench.local.etcd[0].pause(true).unwrap();
    let url = bench.at(0, &format!("/v1/calls/{call}/results"));
    let reading = tokio::spawn(bench.http.get(url).send());
    for _ in 0..20 {
        assert_eq!(bench.http.get(bench.at(0, "/healthz")).send().await.unwrap().status(), 200);
    }
    assert!(!reading.is_finished(), "the read did not have to wait");
    bench.local.etcd[0].pause(false).unwrap();
    drop(reading);
}

#[tokio::test]
async fn a_map_whose_owner_is_killed_ends_with_an_error_and_is_shown_as_cancelled() {
    let mut bench = Cluster::start(Size { etcd: 1, schedulers: 2, workers: 1, ..Size::default() }).await.unwrap();
    bench
        .deploy("slow", &spec(&["sh", "-c", "sleep 0.2; cat"], "exec", json!({"resources": {"cpu": 0.25}})))
        .await
        .unwrap();
    let (owner, other) = bench.roles("slow").await;
    let body: String = (0..200).map(|n| format!("{n}\n")).collect();
    let mut stream = bench.http.post(bench.function(other, "slow", "/map")).body(body).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let call = stream.headers()["Capstan-Call-Id"].to_str().unwrap().to_owned();
    let mut text = Vec::new();
    // Something has ended, and is durable.
    while text.is_empty() {
        text.extend(stream.chunk().await.unwrap().unwrap());
    }
    eventually("an outcome in the store", async || {
        let path = format!("/v1/calls/{call}/results");
        let lines = bench.http.get(bench.at(other, &path)).send().await.ok()?.text().await.ok()?;
        (!lines.is_empty()).then_some(())
    })
    .await;
    bench.local.schedulers[owner].process.kill().await.unwrap();
    while let Some(more) = stream.chunk().await.expect("it breaks off without a word") {
        text.extend(more);
    }
    let text = String::from_utf8(text).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&last["error"]["code"], last["index"].is_null()), (&json!("unavailable"), true), "{last}");
    let ended = bench.ended(other, &call).await;
    assert_eq!(ended["state"], "cancelled", "{ended}");
}
