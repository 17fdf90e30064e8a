//! Many functions, shares, days: what scaling costs and how true it is.

use super::{percentile_ms, scale::cpu_s};
use crate::real::{Up, memory_mib, spec};
use anyhow::{Context, Result};
use capstan_common::{
    function::FunctionSpec,
    id::{ContainerId, Epoch, FunctionKey, RequestId, Revision, WorkerId},
    resource::Amount,
    time::Time,
    worker::WorkerState,
};
use capstan_scheduler::keda::proto::{ScaledObjectRef, external_scaler_client::ExternalScalerClient};
use capstan_scheduler_core::{
    autoscaler::{self, Autoscaler},
    effect::{Effect, Output},
    event::Event,
    function::Function,
    limits::Limits,
};
use capstan_simulator::{Arrival, Machine, Scenario, Trace, replay, trace::Shape};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Functions of the large benches.
const MANY: usize = 10_000;

/// How a process does while nothing is asked of it for ten seconds.
async fn at_rest(up: &Up) -> Result<(f64, f64)> {
    // What was kept in case that more comes has gone by then.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (before, begun) = (cpu_s(up.pid())?, Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let share = (cpu_s(up.pid())? - before) / begun.elapsed().as_secs_f64();
    Ok(((share * 1e4).round() / 100.0, memory_mib(up.pid())?))
}

/// Ten thousand functions: at rest without containers, then each has its first input from zero, then at rest with a container
/// each; and the time from those inputs to the orders for their containers, as the scheduler saw it.
pub async fn functions() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let roomy = ["--set", "worker.cpu=2000", "--set", "worker.memory_mib=4000000"];
    let up = Up::start(&folder.path().join("data"), &roomy)?;
    let idle = json!({"resources": {"cpu_limit": null}, "autoscaler": {"scaledown_window": 3600}});
    let idle = spec(&["true"], "exec", idle);
    let numbers = || futures_util::stream::iter((0..MANY).map(anyhow::Ok));
    numbers()
        .try_for_each_concurrent(16, |n| {
            let (up, idle) = (&up, idle.clone());
            async move { up.deploy(&format!("f{n}"), idle).await.map(drop) }
        })
        .await?;
    let (empty_percent, empty_mib) = at_rest(&up).await?;

    let events = up.http.get(up.at("/v1/events")).send().await?;
    let listening = tokio::spawn(placed(events, MANY));
    for n in 0..MANY {
        let (status, answer) = up.invoke(&format!("f{n}"), json!(1)).await?;
        anyhow::ensure!(status == 200, "{status}: {answer}");
    }
    let mut orders = listening.await??;
    let (percent, mib) = at_rest(&up).await?;
    Ok(json!({
        "functions": MANY, "empty_percent": empty_percent, "empty_mib": empty_mib,
        "with_a_container_each_percent": percent, "with_a_container_each_mib": mib, "goal_percent": 1, "goal_mib": 200,
        "first_input_to_order_p50_ms": percentile_ms(&mut orders, 0.5), "first_input_to_order_p99_ms": percentile_ms(&mut orders, 0.99),
        "goal_order_p50_ms": 1, "goal_order_p99_ms": 5,
    }))
}

/// Seconds from the decision to start to the order, of so many containers, as the events tell.
async fn placed(events: reqwest::Response, count: usize) -> Result<Vec<f64>> {
    let (mut found, mut text) = (Vec::new(), String::new());
    let mut chunks = events.bytes_stream();
    while found.len() < count {
        let chunk = chunks.next().await.context("events end")??;
        text.push_str(std::str::from_utf8(&chunk)?);
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            let Some(data) = event.strip_prefix("data: ") else { continue };
            let event: Value = serde_json::from_str(data.trim())?;
            anyhow::ensure!(event["kind"] != "missed", "events were missed");
            if event["kind"] == "container_ready" {
                found.push(event["facts"]["phases_us"]["place"].as_f64().context("place")? / 1e6);
            }
        }
    }
    Ok(found)
}

/// The decision itself, of one function among ten thousand that hold a container each: the function's step on its first
/// input, the autoscaler's placement, and the step that orders the start.
pub fn decision() -> Result<Value> {
    let spec: Arc<FunctionSpec> =
        Arc::new(serde_json::from_value(json!({"runtime": {"process": {"command": ["true"]}}, "protocol": "http"}))?);
    let (limits, now) = (Arc::new(Limits::default()), Time(1_000_000_000));
    let mut autoscaler = Autoscaler::new(Epoch(1));
    let mut granted = Vec::new();
    for n in 0..100 {
        let worker = WorkerId(format!("w{n}").as_str().into());
        let capacity = Amount { cpu_milli: 64_000, memory_mib: 256_000, gpus: 0 };
        autoscaler.step(
            autoscaler::Event::Joined {
                worker,
                capacity,
                gpu: "".into(),
                ground: Default::default(),
                state: WorkerState::Ready,
                flaps: false,
            },
            &mut granted,
        );
    }
    let mut functions = Vec::with_capacity(MANY);
    for n in 0..MANY {
        let key = FunctionKey::new("default", &format!("f{n:05}"));
        let mut out = Output::default();
        let core = Function::deploy(key, Epoch(1), limits.clone(), now, (spec.clone(), Revision(0)), &mut out);
        functions.push(core.map_err(|refusal| anyhow::anyhow!(refusal.detail))?);
    }
    let mut times = Vec::with_capacity(MANY);
    for round in 0..2 {
        times.clear();
        for (n, function) in functions.iter_mut().enumerate() {
            let begun = Instant::now();
            let mut out = Output::default();
            let request = RequestId((round * MANY + n) as u64);
            function
                .step(now, Event::Enter { request }, &mut out)
                .map_err(|refusal| anyhow::anyhow!(refusal.detail))?;
            let demand =
                out.effects.iter().find_map(|e| if let Effect::Demand(d) = e { Some(d.clone()) } else { None });
            granted.clear();
            autoscaler.step(autoscaler::Event::Wanted(demand.context("a demand")?), &mut granted);
            let grant = granted.iter().find_map(|e| match e {
                autoscaler::Effect::Grant { container, worker, amount, chosen, .. } => {
                    Some((*container, worker.clone(), *amount, *chosen))
                }
                _ => None,
            });
            let (container, worker, amount, chosen): (ContainerId, WorkerId, Amount, _) = grant.context("a place")?;
            let mut out = Output::default();
            drop(function.step(now, Event::Granted { container, worker, amount, gpu: None, chosen }, &mut out));
            times.push(begun.elapsed().as_secs_f64());
            anyhow::ensure!(out.effects.iter().any(|e| matches!(e, Effect::Order(..))), "no order");
        }
    }
    Ok(
        json!({"functions": MANY, "decision_p50_us": percentile_ms(&mut times, 0.5) * 1e3, "decision_p99_us": percentile_ms(&mut times, 0.99) * 1e3, "goal_us": 50}),
    )
}

/// From a spawn's answer on its way to KEDA's stream, a hundred times from zero.
pub async fn keda() -> Result<Value> {
    let port = capstan::local::free_ports(1)?[0];
    let folder = tempfile::tempdir()?;
    let listen = format!("scheduler.keda_listen=127.0.0.1:{port}");
    let up = Up::start(&folder.path().join("data"), &["--set", &listen])?;
    let mut keda = ExternalScalerClient::connect(format!("http://127.0.0.1:{port}")).await?;
    let mut times = Vec::new();
    for n in 0..100 {
        let name = format!("f{n}");
        up.deploy(&name, spec(&["true"], "exec", json!({}))).await?;
        let scaler_metadata = [("function".to_owned(), name.clone())].into();
        let object = ScaledObjectRef { name: "scaled".into(), namespace: "cluster".into(), scaler_metadata };
        let mut active = keda.stream_is_active(object).await?.into_inner();
        anyhow::ensure!(
            !active.message().await?.context("a first word")?.result,
            "it is active before its first input"
        );
        let (url, begun) = (up.function(&name, "/spawn"), Instant::now());
        let (spawned, pushed) = tokio::join!(up.post(&url, "1"), active.message());
        anyhow::ensure!(spawned?.0 == 202 && pushed?.context("a push")?.result, "not pushed");
        times.push(begun.elapsed().as_secs_f64());
    }
    Ok(
        json!({"request_to_active_p50_ms": percentile_ms(&mut times, 0.5), "request_to_active_p99_ms": percentile_ms(&mut times, 0.99), "goal_ms": 200}),
    )
}

/// A day of traffic of a thousand functions of all shapes, through the real decision code.
pub fn day() -> Result<Value> {
    let spec: FunctionSpec = serde_json::from_value(json!({"runtime": {"process": {"command": ["true"]}}}))?;
    let (begun, mut inputs, mut starts) = (Instant::now(), 0, 0);
    for n in 0..1_000u64 {
        let shape = Shape::ALL[n as usize % Shape::ALL.len()];
        // One input in twenty seconds on average, half a second each: 4,320 a day.
        let trace = shape.generate(n, 0.05, 86_400.0, 500.0);
        let outcome = replay(&Scenario::of(spec.clone()), &trace, &Machine::default()).map_err(anyhow::Error::msg)?;
        inputs += outcome.inputs;
        starts += outcome.cold_starts;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(
        json!({"functions": 1_000, "virtual_s": 86_400, "inputs": inputs, "cold_starts": starts, "seconds": (seconds * 100.0).round() / 100.0, "goal_s": 60}),
    )
}

/// Two equal namespaces with more work than fits: what each holds, over ten seconds of saturation.
pub async fn share() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &["--set", "worker.cpu=4", "--set", "worker.memory_mib=100000"])?;
    let busy = spec(&["sleep", "0.2"], "exec", json!({"resources": {"cpu": 0.25, "cpu_limit": null}}));
    for namespace in ["a", "b"] {
        let url = up.at(&format!("/v1/namespaces/{namespace}/functions/f"));
        up.http.put(&url).json(&busy).send().await?.error_for_status()?;
        let (status, answer) = up.post(&format!("{url}/spawn_map"), "1\n".repeat(20_000)).await?;
        anyhow::ensure!(status == 202, "{status}: {answer}");
        // The second comes late, to a machine that the first has filled.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut held, begun) = ([0u64; 2], Instant::now());
    while begun.elapsed() < Duration::from_secs(10) {
        for (namespace, held) in ["a", "b"].iter().zip(&mut held) {
            let stats = up.get(&format!("/v1/namespaces/{namespace}/functions/f/stats")).await?;
            *held += stats["containers"]["busy"].as_u64().unwrap_or_default();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let part = held[0] as f64 / (held[0] + held[1]) as f64 * 100.0;
    Ok(json!({"slots": 16, "percent_of_the_first": (part * 10.0).round() / 10.0, "goal": "50 ± 5"}))
}

/// Real traffic for 40 seconds, and the same traffic replayed with the live settings: how far the container counts are apart.
pub async fn whatif() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up =
        Up::start(&folder.path().join("data"), &["--set", "worker.cpu=1000", "--set", "worker.memory_mib=1000000"])?;
    let settings =
        json!({"autoscaler": {"scaledown_window": 3, "buffer_containers": 1}, "resources": {"cpu_limit": null}});
    up.deploy("f", spec(&["sh", "-c", "read t; exec sleep $t"], "exec", settings)).await?;
    let wanted = Shape::Bursty.generate(7, 4.0, 40.0, 800.0);
    let first = wanted.arrivals.first().context("arrivals")?.at;
    let begun = tokio::time::Instant::now();
    let counting = tokio::spawn(count(up.at("/v1/namespaces/default/functions/f/stats"), Duration::from_secs(48)));
    for Arrival { at, run_us } in wanted.arrivals {
        tokio::time::sleep_until(begun + Duration::from_micros(at.since_us(first))).await;
        let (http, url) = (up.http.clone(), up.function("f", "/spawn"));
        tokio::spawn(async move { http.post(url).body((run_us as f64 / 1e6).to_string()).send().await });
    }
    let counted = counting.await??;
    let text = up.http.get(up.function("f", "/trace")).send().await?.text().await?;
    let trace = Trace::read(&text).map_err(anyhow::Error::msg)?;
    let view = up.get("/v1/namespaces/default/functions/f").await?;
    let spec: FunctionSpec = serde_json::from_value(view["spec"].clone())?;
    let outcome = replay(&Scenario::of(spec.clone()), &trace, &Machine::default()).map_err(anyhow::Error::msg)?;
    let at = |time: Time| outcome.containers.iter().take_while(|(from, _)| *from <= time).last().map_or(0, |(_, n)| *n);
    let (mut apart, mut all) = (0.0, 0.0);
    for pair in counted.windows(2) {
        let width = pair[1].0.since_us(pair[0].0) as f64;
        apart += f64::from(at(pair[0].0).abs_diff(pair[0].1)) * width;
        all += f64::from(pair[0].1) * width;
    }
    Ok(
        json!({"inputs": outcome.inputs, "recorded_container_s": (all / 1e4).round() / 100.0, "peak": outcome.peak, "apart_percent": (apart / all * 1e4).round() / 100.0, "goal_percent": 5}),
    )
}

/// How many containers a function has, looked at every few milliseconds.
async fn count(url: String, most: Duration) -> Result<Vec<(Time, u32)>> {
    let (http, begun, mut counted) = (reqwest::Client::new(), Instant::now(), Vec::new());
    while begun.elapsed() < most {
        let stats: Value = http.get(&url).send().await?.json().await?;
        let of = |state: &str| stats["containers"][state].as_u64().unwrap_or_default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let live = of("starting") + of("idle") + of("busy") + of("draining");
        counted.push((Time(now.as_micros() as u64), live as u32));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(counted)
}
