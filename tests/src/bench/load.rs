//! Bringing work: spawn_map, spawn, invoke.

use super::{median, per_second, percentile_ms};
use crate::real::{Up, echo, spec};
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A function that is never placed: its inputs stay pending.
pub fn parked() -> Value {
    spec(&["cat"], "exec", json!({"resources": {"cpu": 10_000}}))
}

/// `count` lines of `bytes` bytes of JSON each.
pub fn lines(count: usize, bytes: usize) -> Bytes {
    let mut body = Vec::with_capacity(count * (bytes + 1));
    for n in 0..count {
        let line = format!("{{\"n\":\"{n:08}\",\"pad\":\"");
        body.extend_from_slice(line.as_bytes());
        body.resize(body.len() + bytes - line.len() - 2, b'x');
        body.extend_from_slice(b"\"}\n");
    }
    body.into()
}

/// One connection of keep-alive HTTP.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// To the scheduler.
    pub async fn open(up: &Up) -> Result<Self> {
        let host = up.url.strip_prefix("http://").context("an http address")?.to_owned();
        let stream = tokio::net::TcpStream::connect(&host).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host })
    }

    /// POST; answers the status.
    pub async fn post(&mut self, path: &str, body: Bytes) -> Result<u16> {
        self.sender.ready().await?;
        let request = Request::post(path).header("host", &self.host).body(Full::new(body))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        Ok(status)
    }
}

/// A million inputs of 100 bytes until the durable 202; three times, in folders of their own.
pub async fn spawn_map() -> Result<Value> {
    let count = 1_000_000;
    let body = lines(count, 100);
    let mut rates = Vec::new();
    for _ in 0..3 {
        let folder = tempfile::tempdir()?;
        let up = Up::start(&folder.path().join("data"), &[])?;
        up.deploy("f", parked()).await?;
        let begun = Instant::now();
        let (status, answer) = up.post(&up.function("f", "/spawn_map"), body.clone()).await?;
        anyhow::ensure!(status == 202, "{status}: {answer}");
        rates.push(per_second(count, begun));
    }
    Ok(json!({"inputs_per_s": median(rates.clone()), "runs": rates, "goal": 300_000}))
}

/// One input a request over 64 connections.
pub async fn spawn() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    up.deploy("f", parked()).await?;
    let body = lines(1, 100);
    let begun = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..64 {
        let (mut connection, body) = (Connection::open(&up).await?, body.clone());
        clients.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < Duration::from_secs(5) {
                let sent = Instant::now();
                let status = connection.post("/v1/namespaces/default/functions/f/spawn", body.clone()).await?;
                anyhow::ensure!(status == 202, "{status}");
                times.push(sent.elapsed().as_secs_f64());
            }
            Ok(times)
        }));
    }
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await??);
    }
    let rate = per_second(times.len(), begun);
    Ok(
        json!({"per_s": rate, "p50_ms": percentile_ms(&mut times, 0.5), "p99_ms": percentile_ms(&mut times, 0.99), "goal_per_s": 15_000, "goal_p99_ms": 25}),
    )
}

/// Warm invokes of an echo server over one connection.
pub async fn invoke() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    up.deploy("f", echo("", json!({"resources": {"cpu": 1, "cpu_limit": null}}))?).await?;
    let mut times = warm_invokes(&up).await?;
    Ok(
        json!({"p50_ms": percentile_ms(&mut times, 0.5), "p99_ms": percentile_ms(&mut times, 0.99), "goal_p50_ms": 0.4, "goal_p99_ms": 2}),
    )
}

/// The same invokes before and after a million inputs wait in the same scheduler, in turns.
pub async fn backlog() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let up = Up::start(&folder.path().join("data"), &[])?;
    up.deploy("f", echo("", json!({"resources": {"cpu": 1, "cpu_limit": null}}))?).await?;
    up.deploy("full", parked()).await?;
    let body = lines(1_000_000, 100);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        without.extend(warm_invokes(&up).await?);
        let (status, answer) = up.post(&up.function("full", "/spawn_map"), body.clone()).await?;
        anyhow::ensure!(status == 202, "{status}: {answer}");
        with.extend(warm_invokes(&up).await?);
        let call = answer["call_id"].as_str().context("call_id")?;
        let (status, answer) = up.post(&up.at(&format!("/v1/calls/{call}/cancel")), Bytes::new()).await?;
        anyhow::ensure!(status == 200, "{status}: {answer}");
    }
    let (before, after) = (percentile_ms(&mut without, 0.99), percentile_ms(&mut with, 0.99));
    Ok(
        json!({"p99_ms": before, "p99_with_a_million_pending_ms": after, "ratio": (after / before * 100.0).round() / 100.0}),
    )
}

async fn warm_invokes(up: &Up) -> Result<Vec<f64>> {
    let mut connection = Connection::open(up).await?;
    let body = Bytes::from_static(b"{\"x\":1}");
    let mut times = Vec::new();
    for round in 0..12_000 {
        let sent = Instant::now();
        let status = connection.post("/v1/namespaces/default/functions/f/invoke", body.clone()).await?;
        anyhow::ensure!(status == 200, "{status}");
        if round >= 2_000 {
            times.push(sent.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}
