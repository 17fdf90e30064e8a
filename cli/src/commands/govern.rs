//! Schedules, namespaces and scaling models to zero from the command line.

use crate::{
    cli::{ScaleToZero, ScheduleAction, SecretAction, TokenAction},
    client::{Client, Failed, segment},
    output,
};
use capstan_scheduler::zero_config::{ZeroConfig, entries_of, yaml};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::{path::Path, time::Duration};

/// The pause between two looks at a worker that drains.
const LOOK: Duration = Duration::from_millis(200);

/// Shows a schedule, or does something with it.
pub async fn schedule(
    client: &Client,
    function: &str,
    action: Option<ScheduleAction>,
    as_json: bool,
) -> anyhow::Result<()> {
    let path = |what: &str| client.function(function, &format!("schedule{what}"));
    let answer = match action {
        None => client.get(&path("")).await?,
        Some(ScheduleAction::Pause) => client.send(Method::POST, &path("/pause"), &Value::Null).await?,
        Some(ScheduleAction::Resume) => client.send(Method::POST, &path("/resume"), &Value::Null).await?,
        Some(ScheduleAction::Run) => client.send(Method::POST, &path("/run"), &Value::Null).await?,
    };
    if as_json {
        return output::print_json(&answer);
    }
    if answer["call_id"].is_string() {
        return output::print(output::text(&answer["call_id"]));
    }
    let next = answer["next"].as_array().cloned().unwrap_or_default();
    let next: Vec<_> = next.iter().map(output::text).collect();
    output::print(format!(
        "schedule: {}\npaused: {}\nlast: {}\nnext: {}\nwaiting: {}",
        answer["schedule"],
        output::text(&answer["paused"]),
        output::text(&answer["last"]),
        if next.is_empty() { "-".into() } else { next.join(", ") },
        output::text(&answer["waiting"]),
    ))
}

/// Lists namespaces.
pub async fn namespaces(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let fields = [
        ("namespace", "/name"),
        ("weight", "/weight"),
        ("containers", "/used/containers"),
        ("at most", "/quota/containers"),
        ("cpu", "/used/cpu"),
        ("at most", "/quota/cpu"),
        ("MiB", "/used/memory_mib"),
        ("at most", "/quota/memory_mib"),
        ("GPUs", "/used/gpus"),
        ("at most", "/quota/gpus"),
    ];
    super::list(client, "/v1/namespaces", "namespaces", &fields, as_json).await
}

/// Shows a namespace, or sets its weight and quota; what is not named stays.
pub async fn namespace(client: &Client, name: &str, changes: Map<String, Value>, as_json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/namespaces/{}", segment(name));
    let mut view = client.get(&path).await?;
    if !changes.is_empty() {
        let mut policy = json!({"weight": view["weight"], "quota": view["quota"]});
        for (field, value) in changes {
            match field.as_str() {
                "weight" => policy["weight"] = value,
                other => policy["quota"][other] = value,
            }
        }
        view = client.send(Method::PUT, &path, &policy).await?;
    }
    if as_json { output::print_json(&view) } else { output::print(serde_json::to_string_pretty(&view)?) }
}

fn read(file: &Path) -> Result<ZeroConfig, Failed> {
    let usage = |what: String| Failed::Usage(format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| usage(format!("cannot be read: {e}")))?;
    let document = yaml(&text).map_err(|e| usage(format!("is not YAML: {e}")))?;
    Ok(ZeroConfig::read(entries_of(document).map_err(|refusal| usage(refusal.detail))?))
}

fn warn(config: &ZeroConfig) {
    for warning in &config.warnings {
        crate::output::say(format!("warning: {}: {}", warning.entry, warning.detail));
    }
}

/// Scaling models to zero.
pub async fn scale_to_zero(client: &Client, action: ScaleToZero, as_json: bool) -> anyhow::Result<()> {
    match action {
        ScaleToZero::Show => output::print_json(&client.get("/v1/scale-to-zero").await?),
        ScaleToZero::Apply { file } => {
            let config = read(&file)?;
            warn(&config);
            let held = config.config.entries().len();
            let answer = client.send(Method::PUT, "/v1/scale-to-zero", &Value::Object(config.data)).await?;
            if as_json { output::print_json(&answer) } else { output::print(format!("{held} entries hold")) }
        }
        ScaleToZero::Lint { file } => {
            let config = read(&file)?;
            if as_json {
                output::print_json(&json!({"entries": config.config.entries(), "warnings": config.warnings}))?;
            } else {
                for warning in &config.warnings {
                    output::print(format!("{}: {}", warning.entry, warning.detail))?;
                }
                output::print(format!("{} entries hold", config.config.entries().len()))?;
            }
            match config.warnings.len() {
                0 => Ok(()),
                n => Err(Failed::Function(format!("{n} entries need mending"), Value::Null).into()),
            }
        }
        ScaleToZero::Explain { model, file } => {
            let effective = match file {
                Some(file) => json!(read(&file)?.effective(&model, &client.namespace)),
                None => {
                    let query = format!("model_id={}&namespace={}", segment(&model), segment(&client.namespace));
                    client.get(&format!("/v1/scale-to-zero/effective?{query}")).await?
                }
            };
            if as_json {
                return output::print_json(&effective);
            }
            let rows = ["enable_scale_to_zero", "retention_period"].map(|field| {
                vec![field.to_owned(), output::text(&effective[field]), output::text(&effective["decided_by"][field])]
            });
            output::print(output::table(&["field", "value", "decided by"], rows))
        }
    }
}

/// Sets, lists or removes secrets.
pub async fn secret(client: &Client, action: SecretAction, as_json: bool) -> anyhow::Result<()> {
    let all = client.in_namespace("/secrets");
    match action {
        SecretAction::List => {
            super::list(client, &all, "secrets", &[("secret", "/name"), ("keys", "/keys")], as_json).await
        }
        SecretAction::Set { name, values } => {
            let values = values.iter().map(|text| value_of(text)).collect::<Result<Map<String, Value>, Failed>>()?;
            let path = format!("{all}/{}", segment(&name));
            let answer = client.send(Method::PUT, &path, &json!({"values": values})).await?;
            if as_json { output::print_json(&answer) } else { output::print(format!("set {name}")) }
        }
        SecretAction::Remove { name } => {
            let answer = client.send(Method::DELETE, &format!("{all}/{}", segment(&name)), &Value::Null).await?;
            if as_json { output::print_json(&answer) } else { output::print(format!("removed {name}")) }
        }
    }
}

/// A variable and its value, which may lie in a file.
fn value_of(text: &str) -> Result<(String, Value), Failed> {
    let wrong = |why: String| Failed::Usage(format!("`{}`: {why}", text.split('=').next().unwrap_or_default()));
    let (key, value) = text.split_once('=').ok_or_else(|| wrong("write KEY=VALUE, or KEY=@FILE".into()))?;
    let value = match value.strip_prefix('@') {
        None => value.to_owned(),
        Some(file) => {
            let read = std::fs::read_to_string(file).map_err(|error| wrong(format!("{file}: {error}")))?;
            read.strip_suffix('\n').unwrap_or(&read).to_owned()
        }
    };
    Ok((key.to_owned(), value.into()))
}

/// Makes, lists or revokes API tokens.
pub async fn token(client: &Client, action: TokenAction, as_json: bool) -> anyhow::Result<()> {
    match action {
        TokenAction::List => {
            let fields = [
                ("token", "/id"),
                ("name", "/name"),
                ("role", "/role"),
                ("namespaces", "/namespaces"),
                ("created", "/created_at"),
            ];
            super::list(client, "/v1/tokens", "tokens", &fields, as_json).await
        }
        TokenAction::Create { role, namespaces, name } => {
            let namespaces = (!namespaces.is_empty()).then_some(namespaces);
            let wanted = json!({"role": role, "namespaces": namespaces, "name": name});
            let made = client.send(Method::POST, "/v1/tokens", &wanted).await?;
            if as_json { output::print_json(&made) } else { output::print(output::text(&made["token"])) }
        }
        TokenAction::Revoke { id } => {
            let answer = client.send(Method::DELETE, &format!("/v1/tokens/{}", segment(&id)), &Value::Null).await?;
            if as_json { output::print_json(&answer) } else { output::print(format!("revoked {id}")) }
        }
    }
}

/// Makes a join token.
pub async fn invite(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let made = client.send(Method::POST, "/v1/join-tokens", &Value::Null).await?;
    if as_json { output::print_json(&made) } else { output::print(output::text(&made["join_token"])) }
}

/// Places nothing more on a worker; with `wait`, until nothing is left there.
pub async fn drain(client: &Client, worker: &str, wait: bool, as_json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/workers/{}", segment(worker));
    let mut view = client.send(Method::POST, &format!("{path}/drain"), &Value::Null).await?;
    let left = |view: &Value| view["containers"].as_array().map_or(0, Vec::len);
    let progress = super::map::bar(Some(left(&view) as u64));
    while wait && left(&view) > 0 {
        progress.set_position(progress.length().unwrap_or(0).saturating_sub(left(&view) as u64));
        tokio::time::sleep(LOOK).await;
        view = client.get(&path).await?;
    }
    progress.finish_and_clear();
    if as_json {
        return output::print_json(&view);
    }
    output::print(format!("{worker} is {}, with {} containers left", output::text(&view["state"]), left(&view)))
}

/// Places on a drained worker again.
pub async fn resume(client: &Client, worker: &str, as_json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/workers/{}/resume", segment(worker));
    let view = client.send(Method::POST, &path, &Value::Null).await?;
    if as_json {
        output::print_json(&view)
    } else {
        output::print(format!("{worker} is {}", output::text(&view["state"])))
    }
}

/// Revokes a worker's certificate.
pub async fn revoke(client: &Client, worker: &str, as_json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/workers/{}/revoke", segment(worker));
    let answer = client.send(Method::POST, &path, &Value::Null).await?;
    if as_json {
        return output::print_json(&answer);
    }
    let unknown = if answer["known"] == false { " (no worker of that name is there now)" } else { "" };
    output::print(format!("revoked {worker}{unknown}"))
}
