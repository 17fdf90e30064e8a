//! The words of a script.
//!
//! ```text
//! # a comment
//! worker W cpu=4 memory=8192 gpu=H100:2 partial      a worker joins (partial: it does not keep functions wholly apart)
//! drain W · resume W · flaps W · steady W · lose W
//! namespace N weight=3 containers=2 cpu=4 gpus=1      its weight and its quota
//! function F {"autoscaler": {"max_containers": 3}}    deploys; fields are added to those of a small http server
//! takes F start=2 run=5                               seconds that its containers take; start=never
//! fails F 2 error|crash|oom|timeout|start             how its next attempts (or starts) end
//! invoke F 3 · spawn F 3 · map F 5                    calls: of one input each, or one of many
//! web F 2                                             requests through /web
//! cancel 1 · stop 1                                   a call; a container
//! patch F {"min_containers": 2} · remove F
//! model F on 60 · model F off                         the scale-to-zero configuration's word, with its retention
//! full F · room F                                     the store takes no new work; takes it again
//! wait 30 · until 08:00                               time passes
//! explain F · nodes cpu=4 memory=8192 · restart
//! ```

use super::cluster::{Cluster, Fate, Verb};
use capstan_common::{
    function::{FunctionSpec, OverridesPatch},
    id::FunctionKey,
    resource::Amount,
    worker::WorkerState,
};
use capstan_scheduler_core::{
    autoscaler::{Policy, Quota},
    event::Event,
    function::ZeroRule,
};
use serde_json::{Value, json};
use std::fmt::Write;

/// Seconds, as a script writes them; none for `never`.
fn seconds(text: &str) -> Result<Option<u64>, String> {
    if text == "never" {
        return Ok(None);
    }
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Ok(Some((seconds * 1e6) as u64))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

/// A function's name, in the namespace `default` unless it names another.
fn function(text: &str) -> FunctionKey {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    FunctionKey::new(namespace, name)
}

/// `name=value` among a line's words.
fn given<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The same as a number.
fn amount_of<T: std::str::FromStr>(words: &[&str], name: &str) -> Result<Option<T>, String> {
    given(words, name).map(number).transpose()
}

fn cores(words: &[&str]) -> Result<Option<u64>, String> {
    let cores: Option<f64> = amount_of(words, "cpu")?;
    Ok(cores.map(|cores| (cores * 1000.0) as u64))
}

fn spec(fields: &str) -> Result<FunctionSpec, String> {
    let mut spec =
        json!({"runtime": {"process": {"command": ["server"]}}, "protocol": "http", "resources": {"cpu": 1}});
    let fields: Value = serde_json::from_str(fields).map_err(|error| error.to_string())?;
    let (Value::Object(spec), Value::Object(fields)) = (&mut spec, fields) else { return Err("not an object".into()) };
    spec.extend(fields);
    serde_json::from_value(Value::Object(std::mem::take(spec))).map_err(|error| error.to_string())
}

/// Plays a script; answers its own lines with what comes of each.
///
/// # Errors
/// A line that is none.
pub fn play(script: &str) -> Result<String, String> {
    let mut cluster = Cluster::new();
    let mut text = String::new();
    for line in script.lines().filter(|line| !line.starts_with(' ')) {
        let _ = writeln!(text, "{line}");
        if !line.is_empty() && !line.starts_with('#') {
            obey(&mut cluster, line).map_err(|error| format!("`{line}`: {error}"))?;
        }
        for told in cluster.told() {
            let _ = writeln!(text, "  {told}");
        }
    }
    Ok(text)
}

fn obey(cluster: &mut Cluster, line: &str) -> Result<(), String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (name, more) = rest.split_once(' ').unwrap_or((rest, ""));
    let words: Vec<&str> = more.split(' ').collect();
    match word {
        "worker" => {
            let gpus = given(&words, "gpu").and_then(|gpu| gpu.split_once(':'));
            let capacity = Amount {
                cpu_milli: cores(&words)?.unwrap_or(4_000),
                memory_mib: amount_of(&words, "memory")?.unwrap_or(16_384),
                gpus: gpus.map_or(Ok(0), |(_, count)| number(count))?,
            };
            cluster.join(name, capacity, gpus.map_or("", |(model, _)| model), !words.contains(&"partial"));
        }
        "drain" => cluster.turn(name, WorkerState::Draining),
        "resume" => cluster.turn(name, WorkerState::Ready),
        "flaps" => cluster.flaps(name, true),
        "steady" => cluster.flaps(name, false),
        "lose" => cluster.lose(name),
        "namespace" => {
            let quota = Quota {
                containers: amount_of(&words, "containers")?,
                cpu_milli: cores(&words)?,
                memory_mib: amount_of(&words, "memory")?,
                gpus: amount_of(&words, "gpus")?,
            };
            cluster.govern(name, Policy { weight: amount_of(&words, "weight")?.unwrap_or(1), quota });
        }
        "function" => cluster.deploy(function(name), spec(if more.is_empty() { "{}" } else { more })?),
        "takes" => cluster.takes(
            &function(name),
            given(&words, "start").map(seconds).transpose()?,
            given(&words, "run").map(seconds).transpose()?.flatten(),
        )?,
        "fails" => {
            cluster.fails(&function(name), number(words[0])?, Fate::of(words.get(1).copied().unwrap_or_default())?)?
        }
        "invoke" => cluster.call(&function(name), Verb::Invoke, number(more)?),
        "spawn" => cluster.call(&function(name), Verb::Spawn, number(more)?),
        "map" => cluster.call(&function(name), Verb::Map, number(more)?),
        "web" => cluster.visit(&function(name), number(more)?),
        "cancel" => cluster.cancel(number(name)?)?,
        "stop" => cluster.stop(number(name)?)?,
        "patch" => {
            let patch: OverridesPatch = serde_json::from_str(more).map_err(|error| error.to_string())?;
            cluster.tell(&function(name), Event::Patch(patch));
        }
        "remove" => cluster.tell(&function(name), Event::Remove),
        "model" => {
            let rule = ZeroRule {
                enabled: words[0] == "on",
                retention_ms: words.get(1).map_or(Ok(0), |s| number::<u64>(s))? * 1_000,
                flag_by: "default".into(),
                retention_by: "default".into(),
            };
            cluster.tell(&function(name), Event::Ruled(rule));
        }
        "full" => cluster.tell(&function(name), Event::StoreFull(true)),
        "room" => cluster.tell(&function(name), Event::StoreFull(false)),
        "wait" => cluster.wait(seconds(name)?.ok_or("for how long?")?),
        "until" => {
            let (hours, minutes) = name.split_once(':').ok_or("a time is like 08:00")?;
            cluster.until(number::<u64>(hours)? * 60 + number::<u64>(minutes)?)?;
        }
        "explain" => cluster.explain(&function(name))?,
        "nodes" => {
            let words: Vec<&str> = rest.split(' ').collect();
            let memory_mib = amount_of(&words, "memory")?.unwrap_or(16_384);
            cluster.nodes(Amount { cpu_milli: cores(&words)?.unwrap_or(4_000), memory_mib, gpus: 0 });
        }
        "restart" => cluster.restart()?,
        _ => return Err("no such word".into()),
    }
    Ok(())
}
