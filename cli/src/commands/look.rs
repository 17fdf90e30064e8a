//! What is, and why, from the command line.

use super::print_list;
use crate::{
    cli::UpArgs,
    client::{Client, Failed, lines, segment},
    config, output,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::io::Write;

/// A text whose addresses name no user and password: `https://user:password@host`.
fn without_passwords(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let host = part.find(['/', '"', ',', ' ']).unwrap_or(part.len());
        let (authority, rest) = part.split_at(host);
        shown.push_str("://");
        match authority.rsplit_once('@') {
            Some((_, host)) => shown.push_str(&format!("hidden@{host}")),
            None => shown.push_str(authority),
        }
        shown.push_str(rest);
    }
    shown
}

/// The effective configuration.
pub fn config(args: &UpArgs, as_json: bool) -> anyhow::Result<()> {
    let loaded = super::usage(config::load(args))?;
    let shown = |key: &str, value: &toml::Value| {
        let secret = ["password", "join", "token", "secret"].iter().any(|name| key.rsplit('.').next() == Some(name));
        if key.ends_with("tokens") {
            format!("{} hidden", value.as_array().map_or(0, Vec::len))
        } else if secret && value.as_str() != Some("") {
            "hidden".to_owned()
        } else {
            without_passwords(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        }
    };
    if as_json {
        let all: serde_json::Map<_, _> = loaded
            .origins
            .iter()
            .map(|(key, (value, origin))| (key.clone(), json!({"value": shown(key, value), "origin": origin})))
            .collect();
        return output::print_json(&Value::Object(all));
    }
    let rows = loaded.origins.iter().map(|(key, (value, origin))| vec![key.clone(), shown(key, value), origin.clone()]);
    output::print(output::table(&["setting", "value", "from"], rows))
}

/// What this machine keeps apart and limits, and what is in the way.
pub fn doctor(args: &UpArgs, as_json: bool) -> anyhow::Result<()> {
    let settings = super::usage(config::load(args))?.settings;
    let found = super::usage(capstan_worker::doctor::examine(&settings.worker).map_err(anyhow::Error::msg))?;
    if as_json {
        return output::print_json(&json!({"findings": found}));
    }
    let rows = found.into_iter().map(|finding| {
        let detail = [vec![finding.detail], finding.help.into_iter().collect()].concat().join("\n→ ");
        vec![finding.what.to_owned(), finding.state.to_owned(), detail]
    });
    output::print(output::table(&["what", "here", "why"], rows))
}

/// A function's decisions, or one input's life.
pub async fn explain(client: &Client, what: &str, index: Option<u64>, as_json: bool) -> anyhow::Result<()> {
    if what.starts_with("ca-") {
        let Some(index) = index else {
            return Err(Failed::Usage("which input? write: capstan explain CALL INDEX".into()).into());
        };
        let life = client.get(&format!("/v1/calls/{}/inputs/{index}/explain", segment(what))).await?;
        return if as_json { output::print_json(&life) } else { print_life(&life) };
    }
    let told = client.get(&client.function(what, "explain")).await?;
    if as_json {
        return output::print_json(&told);
    }
    let decisions = told["decisions"].as_array().map_or(&[][..], Vec::as_slice);
    let fields = [
        ("at", "/at"),
        ("from", "/from"),
        ("to", "/to"),
        ("reason", "/reason"),
        ("pending", "/facts/pending"),
        ("running", "/facts/running"),
        ("slots", "/facts/slots"),
        ("min", "/facts/min"),
        ("max", "/facts/max"),
        ("buffer", "/facts/buffer"),
        ("live", "/facts/live"),
    ];
    print_list(decisions, &fields)?;
    let zero = &told["scale_to_zero"];
    if !zero.is_null() {
        let may = if zero["enable_scale_to_zero"] == true { "may" } else { "may not" };
        let kept = zero["kept_by"].as_str().map_or(String::new(), |by| format!("; kept now by {by}"));
        output::print(format!(
            "scale to zero: {may} (by {}), {} s after the last request at {} (by {}){kept}",
            output::text(&zero["decided_by"]["enable_scale_to_zero"]),
            output::text(&zero["retention_s"]),
            output::text(&zero["last_request"]),
            output::text(&zero["decided_by"]["retention_period"]),
        ))?;
    }
    if !told["waiting"].is_null() {
        let (code, detail) = (output::text(&told["waiting"]["code"]), output::text(&told["waiting"]["detail"]));
        output::print(format!("inputs wait: {code}: {detail}"))?;
    }
    Ok(())
}

fn print_life(life: &Value) -> anyhow::Result<()> {
    let steps = life["history"].as_array().map_or(&[][..], Vec::as_slice);
    print_list(steps, &[("state", "/state"), ("at", "/at")])?;
    for name in ["attempts", "container", "worker", "run_ms"] {
        if !life[name].is_null() {
            output::print(format!("{name}: {}", output::text(&life[name])))?;
        }
    }
    if !life["waiting"].is_null() {
        output::print(format!("waits: {}", output::text(&life["waiting"]["detail"])))?;
    }
    if !life["error"].is_null() {
        output::print(format!(
            "error: {}: {}",
            output::text(&life["error"]["type"]),
            output::text(&life["error"]["message"])
        ))?;
    }
    Ok(())
}

/// Which part of the output is printed.
pub struct Output<'a> {
    /// As more comes.
    pub follow: bool,
    /// With the times.
    pub timestamps: bool,
    /// The last lines.
    pub tail: Option<usize>,
    /// Since then.
    pub since: Option<&'a str>,
}

/// Prints what a function's containers wrote, or one container.
pub async fn logs(client: &Client, what: &str, asked: &Output<'_>) -> anyhow::Result<()> {
    let base = match what.starts_with("ct-") {
        true => format!("/v1/containers/{}/logs", segment(what)),
        false => client.function(what, "logs"),
    };
    let mut path = format!("{base}?follow={}&timestamps={}", asked.follow, asked.timestamps);
    for (name, value) in [("tail", asked.tail.map(|n| n.to_string())), ("since", asked.since.map(str::to_owned))] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", segment(&value)));
        }
    }
    let mut lines = lines(client.follow(&path).await?);
    while let Some(line) = lines.next().await {
        std::io::stdout().lock().write_all(&output::for_stdout(&line?))?;
    }
    Ok(())
}

/// Lists schedulers.
pub async fn schedulers(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let fields =
        [("scheduler", "/name"), ("url", "/url"), ("link", "/link"), ("version", "/version"), ("shards", "/shards")];
    super::list(client, "/v1/schedulers", "schedulers", &fields, as_json).await
}

/// Lists workers.
pub async fn workers(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let fields = [
        ("worker", "/name"),
        ("state", "/state"),
        ("cpu", "/capacity/cpu"),
        ("free", "/free/cpu"),
        ("MiB", "/capacity/memory_mib"),
        ("free", "/free/memory_mib"),
        ("GPU", "/capacity/gpus/0/model"),
        ("GPUs", "/capacity/gpus"),
        ("free", "/free/gpus"),
        ("containers", "/containers"),
        ("isolation", "/isolation"),
        ("limits", "/limits"),
    ];
    super::list(client, "/v1/workers", "workers", &fields, as_json).await
}

/// Lists containers.
pub async fn containers(client: &Client, function: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let mut path = format!("/v1/containers?namespace={}", segment(&client.namespace));
    if let Some(function) = function {
        path.push_str(&format!("&function={}", segment(function)));
    }
    let fields = [
        ("container", "/id"),
        ("function", "/function"),
        ("revision", "/revision"),
        ("worker", "/worker"),
        ("state", "/state"),
        ("inputs", "/inputs"),
        ("since", "/started_at"),
        ("there because", "/placement/reason"),
    ];
    super::list(client, &path, "containers", &fields, as_json).await
}

/// Prints events as they happen, until the scheduler ends.
pub async fn events(client: &Client, function: Option<&str>, after: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let namespace = function.map(|_| client.namespace.as_str());
    let asked = [("namespace", namespace), ("function", function), ("after", after)];
    let query = asked.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value?))));
    let mut lines = lines(client.follow(&format!("/v1/events?{}", query.collect::<Vec<_>>().join("&"))).await?);
    while let Some(line) = lines.next().await {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if as_json {
            output::print(data)?;
        } else {
            output::print(told(&serde_json::from_str(data)?))?;
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// An event in a line.
fn told(event: &Value) -> String {
    let about = ["function", "container", "worker"].iter().filter_map(|name| event[name].as_str());
    let about: Vec<String> = about.map(output::plain).collect();
    let facts = event["facts"].as_object().into_iter().flatten();
    let facts: Vec<String> =
        facts.map(|(name, value)| format!("{name}={}", output::plain(&value.to_string()))).collect();
    let time = output::text(&event["at"]);
    let time = time.get(11..19).unwrap_or(&time);
    format!("{time}  {:<22}  {}  {}", output::text(&event["kind"]), about.join(" "), facts.join(" "))
        .trim_end()
        .to_owned()
}

/// Stops a container.
pub async fn stop(client: &Client, container: &str, as_json: bool) -> anyhow::Result<()> {
    let told =
        client.send(reqwest::Method::POST, &format!("/v1/containers/{}/stop", segment(container)), &json!({})).await?;
    if as_json {
        return output::print_json(&told);
    }
    output::print(format!("{container}: {}", output::text(&told["state"])))
}

/// This program's version, and the scheduler's if it answers.
pub async fn version(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let (own, scheduler) = (env!("CARGO_PKG_VERSION"), client.get("/v1/version").await);
    if as_json {
        return output::print_json(&json!({"client": {"version": own}, "scheduler": scheduler.ok()}));
    }
    output::print(format!("capstan    {own}"))?;
    match scheduler {
        Ok(told) => output::print(format!(
            "scheduler  {} ({}), API {}, link {} to {}",
            output::text(&told["version"]),
            output::text(&told["revision"]),
            output::text(&told["api"]),
            output::text(&told["link"]["min"]),
            output::text(&told["link"]["max"]),
        )),
        Err(error) => output::print(format!("scheduler  does not answer: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::without_passwords;

    #[test]
    fn addresses_are_shown_without_passwords() {
        for (text, shown) in [
            ("http://u:p@ss@h:9/x", "http://hidden@h:9/x"),
            ("[\"https://u:p@a\", \"https://b/@c\"]", "[\"https://hidden@a\", \"https://b/@c\"]"),
            ("127.0.0.1:7070", "127.0.0.1:7070"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }
}
