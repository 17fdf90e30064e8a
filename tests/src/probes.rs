//! Probes that try to get out of a function: what they reach on this machine, kept apart, as a plain user's worker, and trusted.

use crate::real::{Up, binary, shared_folder};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write, path::Path};

/// Answers by group and probe: `reached`, or why not.
pub type Answers = BTreeMap<String, BTreeMap<String, String>>;

/// Whatever a probe does, it does it in a pid and mount namespace that ends with it.
const APART: [&str; 6] = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"];
/// A user who is nobody.
const PLAIN: [&str; 9] = [
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
    "--inh-caps=-all",
    // Another user's process is not ended with its parent, unless it asks for it.
    "--pdeathsig",
    "KILL",
];

/// How the worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// As root, with functions kept apart.
    Root,
    /// As a plain user.
    Plain,
}

/// Runs all probes as a function of a namespace, or as one that is trusted.
///
/// # Errors
/// Something did not start.
pub async fn run(worker: Worker, trusted: bool) -> Result<Answers> {
    let folder = shared_folder()?;
    let program = folder.path().join("capstan");
    std::fs::copy(binary("capstan")?, &program)?;
    let at = folder.path().join("data");
    std::fs::write(folder.path().join("key.pem"), "a key")?;
    for script in ["escape.py", "victim.py"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("probes").join(script);
        std::fs::copy(source, folder.path().join(script))?;
    }
    private(&folder.path().join("key.pem"), worker)?;
    let under = match worker {
        Worker::Root => APART.to_vec(),
        Worker::Plain => [APART.as_slice(), PLAIN.as_slice()].concat(),
    };
    let up = Up::start_under(&at, &under, &program, &["--set", "scheduler.keda_listen=127.0.0.1:0"])?;
    let log = std::fs::read_to_string(at.with_extension("log"))?;
    let keda = log.split(r#""served":"127.0.0.1:"#).nth(1).and_then(|rest| rest.split('"').next()?.parse::<u16>().ok());
    let script = |name: &str| folder.path().join(name).display().to_string();
    let volumes = json!({"/kept": "kept"});
    let victim = json!({
        "runtime": {"process": {"command": ["python3", script("victim.py")], "env": {"SECRET": "theirs"}}}, "volumes": volumes,
        "autoscaler": {"min_containers": 1},
    });
    put(&up, "theirs", "victim", &victim).await?;
    let (_, about) = post(&up, "theirs", "victim", &json!(1)).await?;
    let escape = json!({"process": {"command": ["python3", script("escape.py")]}});
    let spec = json!({"runtime": escape, "protocol": "exec", "trusted": trusted});
    put(&up, "mine", "escape", &spec).await?;
    let told = json!({
        "data": at, "url": up.url, "victim": about["home"], "private": script("key.pem"), "trusted": trusted,
        "keda": keda.context("KEDA's port")?,
    });
    let (status, output) = post(&up, "mine", "escape", &told).await?;
    ensure!(status == 200, "the probes ended with {status}: {output}");
    serde_json::from_value(output).context("the probes' answers")
}

/// A file of the operator's alone.
fn private(path: &Path, worker: Worker) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    if worker == Worker::Plain {
        std::os::unix::fs::chown(path, Some(65534), Some(65534))?;
    }
    Ok(())
}

async fn put(up: &Up, namespace: &str, name: &str, spec: &Value) -> Result<()> {
    let response =
        up.http.put(up.at(&format!("/v1/namespaces/{namespace}/functions/{name}"))).json(spec).send().await?;
    let (status, body) = (response.status(), response.text().await?);
    ensure!(status.is_success(), "deploy of {name}: {body}");
    Ok(())
}

async fn post(up: &Up, namespace: &str, name: &str, input: &Value) -> Result<(u16, Value)> {
    let url = up.at(&format!("/v1/namespaces/{namespace}/functions/{name}/invoke"));
    let response = up.http.post(url).json(input).send().await?;
    Ok((response.status().as_u16(), response.json().await?))
}

/// Writes what was found as a page.
///
/// # Errors
/// The probes did not run, or the page cannot be written.
pub async fn write(page: &Path) -> Result<()> {
    let root = run(Worker::Root, false).await?;
    let plain = run(Worker::Plain, false).await?;
    let trusted = run(Worker::Root, true).await?;
    let mut text = String::from(
        "# Escape probes\n\nWritten by `cargo run -p capstan-tests -- probes`; the program is `tests/probes/escape.py`, and the test \
         `apart::` holds it\nagainst a running `capstan up`. *root* is a worker that runs as root, *plain* one of a plain user; each \
         probe also runs with\n`trusted: true`, where it must reach what it reaches for: otherwise it would prove nothing.\n",
    );
    for (group, probes) in &root {
        write!(text, "\n## {group}\n| a function tries to | root | plain | trusted |\n| --- | --- | --- | --- |\n")?;
        for (what, answer) in probes {
            let of = |answers: &Answers| answers.get(group).and_then(|of| of.get(what)).cloned().unwrap_or_default();
            writeln!(text, "| {what} | {} | {} | {} |", shown(answer), shown(&of(&plain)), shown(&of(&trusted)))?;
        }
    }
    std::fs::write(page, text)?;
    Ok(())
}

fn shown(answer: &str) -> String {
    if answer == "reached" { "**reached**".into() } else { format!("no: {answer}") }
}
