//! Servers as people write them: what Capstan adds to a call, against a direct client of the same run.

use super::percentile_ms;
use crate::{
    raw::Raw,
    real::{Up, spec},
};
use anyhow::{Context, Result, ensure};
use capstan::local::free_ports;
use serde_json::{Map, Value, json};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Rounds of each way, which take turns.
const ROUNDS: usize = 5;
/// Calls of a round.
const CALLS: usize = 200;
/// Inputs of a map.
const INPUTS: usize = 3_000;

/// A server that is run without Capstan.
struct Direct(Child, String);

impl Direct {
    fn start(command: &[String], folder: &Path) -> Result<Self> {
        let port = free_ports(1)?[0];
        let child = Command::new(&command[0])
            .args(&command[1..])
            .current_dir(folder)
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let direct = Self(child, format!("http://127.0.0.1:{port}"));
        let begun = Instant::now();
        while Raw::to(&direct.1).send("POST", "/", &[], b"0").is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(20), "{command:?} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(direct)
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        // It holds nothing that could be lost.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server and its command.
type Named = (&'static str, Vec<String>);

/// Installs what the servers need, below the folder that the build writes to.
fn prepared() -> Result<(PathBuf, Vec<Named>)> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers").canonicalize()?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers");
    std::fs::create_dir_all(&built)?;
    let built = built.canonicalize()?;
    let run = |command: &mut Command| -> Result<()> {
        let done = command.current_dir(&sources).stdout(Stdio::null()).status()?;
        ensure!(done.success(), "{command:?}: {done}");
        Ok(())
    };
    let bin = built.join("venv/bin");
    if !bin.join("uvicorn").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(built.join("venv")))?;
        run(Command::new(bin.join("pip")).args(["install", "--quiet", "flask", "gunicorn", "uvicorn"]))?;
    }
    run(Command::new("go").args(["build", "-o"]).arg(built.join("go-server")).arg("main.go"))?;
    let text = |path: PathBuf| path.display().to_string();
    let own =
        |program: String, rest: &[&str]| [vec![program], rest.iter().map(|word| (*word).to_owned()).collect()].concat();
    let shell = |line: String| own("sh".into(), &["-c", &line]);
    let python = "/usr/bin/python3".to_owned();
    let named = vec![
        ("http.server 1.0", own(python.clone(), &["plain.py", "1.0", "0"])),
        ("http.server 1.1", own(python, &["plain.py", "1.1", "0"])),
        ("flask", own(text(bin.join("python")), &["wsgi.py"])),
        ("gunicorn", shell(format!("exec {} -b 127.0.0.1:$PORT wsgi:app", text(bin.join("gunicorn"))))),
        ("uvicorn", shell(format!("exec {} --port $PORT --no-access-log asgi:app", text(bin.join("uvicorn"))))),
        ("node", own("node".into(), &["server.mjs"])),
        ("go", own(text(built.join("go-server")), &[])),
    ];
    Ok((sources, named))
}

/// Milliseconds of each of some calls.
fn timed(client: &mut Raw, path: &str, times: &mut Vec<f64>) -> Result<()> {
    for _ in 0..CALLS {
        let begun = Instant::now();
        let answer = client.send("POST", path, &[("content-type", "application/json")], b"[1]")?;
        times.push(begun.elapsed().as_secs_f64());
        ensure!(answer.status == 200 && answer.body == "[1]", "{path}: {answer:?}");
    }
    Ok(())
}

fn process(command: &[String], folder: &Path, containers: u32) -> Value {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut spec = spec(
        &words,
        "http",
        json!({"autoscaler": {"min_containers": containers, "max_containers": containers}, "resources": {"cpu": 0.5, "cpu_limit": null}}),
    );
    spec["runtime"]["process"]["working_dir"] = json!(folder);
    spec
}

/// A call by each way, in turns.
pub async fn servers() -> Result<Value> {
    let (sources, named) = prepared()?;
    let mut figures = Map::new();
    for (name, command) in named {
        let folder = tempfile::tempdir()?;
        let up = Up::start(&folder.path().join("data"), &[])?;
        up.deploy("f", process(&command, &sources, 1)).await?;
        let (status, said) = up.invoke("f", json!([1])).await?;
        ensure!(status == 200, "{name}: {said}");
        let direct = Direct::start(&command, &sources)?;
        let (mut straight, mut ours) = (Raw::to(&direct.1), Raw::to(&up.url));
        let (mut alone, mut invoked, mut web) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            timed(&mut straight, "/", &mut alone)?;
            timed(&mut ours, "/v1/namespaces/default/functions/f/invoke", &mut invoked)?;
            timed(&mut ours, "/web/default/f/", &mut web)?;
            if round == 0 {
                // Warm now.
                alone.clear();
                invoked.clear();
                web.clear();
            }
        }
        let [alone, invoked, web] = [alone, invoked, web].map(|mut times| percentile_ms(&mut times, 0.5));
        let more = |ms: f64| ((ms - alone) * 1e3).round() / 1e3;
        figures.insert(
            name.to_owned(),
            json!({"direct_ms": alone, "invoke_more_ms": more(invoked), "web_more_ms": more(web)}),
        );
    }
    Ok(Value::Object(figures))
}

/// Inputs a second through two direct clients of two servers.
fn two_clients(servers: &[Direct]) -> Result<f64> {
    let begun = Instant::now();
    let clients: Vec<_> = servers
        .iter()
        .map(|server| {
            let mut client = Raw::to(&server.1);
            std::thread::spawn(move || -> Result<()> {
                for _ in 0..INPUTS / 2 {
                    let answer = client.send("POST", "/", &[("content-type", "application/json")], b"[1]")?;
                    ensure!(answer.status == 200, "{answer:?}");
                }
                Ok(())
            })
        })
        .collect();
    for client in clients {
        client.join().ok().context("a client panicked")??;
    }
    Ok(super::per_second(INPUTS, begun))
}

/// A map through two containers, against two direct clients of two such servers: an empty handler, and one that takes 2 ms.
pub async fn map() -> Result<Value> {
    let (sources, _) = prepared()?;
    let mut figures = Map::new();
    for (version, work) in [("1.0", "0"), ("1.1", "0"), ("1.0", "2"), ("1.1", "2")] {
        let command = ["/usr/bin/python3", "plain.py", version, work].map(str::to_owned);
        let servers = [Direct::start(&command, &sources)?, Direct::start(&command, &sources)?];
        let folder = tempfile::tempdir()?;
        let up = Up::start(&folder.path().join("data"), &[])?;
        up.deploy("f", process(&command, &sources, 2)).await?;
        let body = "[1]\n".repeat(INPUTS);
        let (mut direct, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            direct.push(two_clients(&servers)?);
            let begun = Instant::now();
            let response = up.http.post(up.function("f", "/map?ordered=false")).body(body.clone()).send().await?;
            let ended = response.text().await?.lines().filter(|line| line.contains("\"output\"")).count();
            ensure!(ended == INPUTS, "{ended} of {INPUTS} ended");
            ours.push(super::per_second(INPUTS, begun));
        }
        let (direct, ours) = (super::median(direct), super::median(ours));
        let share = ours.as_f64().unwrap_or_default() / direct.as_f64().unwrap_or(1.0);
        figures.insert(
            format!("http.server {version}, {work} ms"),
            json!({"direct_per_s": direct, "map_per_s": ours, "share": (share * 100.0).round() / 100.0, "goal": if work == "0" { 0.35 } else { 0.9 }}),
        );
    }
    Ok(Value::Object(figures))
}
