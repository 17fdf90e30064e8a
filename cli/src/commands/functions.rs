//! Functions from the command line.

use super::print_list;
use crate::{
    cli::ManifestFormat,
    client::{Client, Failed, segment},
    manifest, output,
};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const FLAGS: [&str; 4] = ["min", "max", "buffer", "window"];
const SETTINGS: [&str; 4] = ["min_containers", "max_containers", "buffer_containers", "scaledown_window"];

/// How something is deployed.
pub struct How {
    /// Checked only.
    pub dry_run: bool,
    /// Until it has taken over.
    pub wait: bool,
    /// At once.
    pub force: bool,
    /// Only if a worker could hold it.
    pub require_capacity: bool,
}

/// How long a deployment is waited for, in seconds.
const WAIT_S: u32 = 3600;

impl How {
    fn query(&self) -> String {
        let wait_s = if self.wait { WAIT_S } else { 0 };
        format!("?wait_s={wait_s}&force={}&require_capacity={}", self.force, self.require_capacity)
    }
}

/// Deploys every function of every manifest; nothing is deployed if one of them cannot be.
pub async fn deploy(client: &Client, files: &[PathBuf], how: &How, as_json: bool) -> anyhow::Result<()> {
    let dry_run = how.dry_run;
    let mut entries = Vec::new();
    for file in files {
        entries.extend(manifest::read(file)?);
    }
    let mut answers = Vec::new();
    if dry_run || entries.len() > 1 {
        for entry in &entries {
            answers.push(put(client, entry, "?dry_run=true").await?);
        }
    }
    if !dry_run {
        answers.clear();
        for entry in &entries {
            let answer = put(client, entry, &how.query()).await?;
            if !as_json {
                let live = &answer["live_revision"];
                let yet = match live == &answer["revision"] {
                    true => String::new(),
                    false => format!("; revision {} serves until its first container is ready", output::text(live)),
                };
                output::print(format!("deployed {} revision {}{yet}", entry.name, output::text(&answer["revision"])))?;
            }
            answers.push(answer);
        }
    }
    for (entry, answer) in entries.iter().zip(&answers) {
        for warning in answer["warnings"].as_array().into_iter().flatten() {
            crate::output::say(format!("warning: {}: {}", entry.name, output::text(warning)));
        }
        if dry_run && !as_json {
            output::print(format!("{} can be deployed", entry.name))?;
        }
    }
    if as_json {
        output::print_json(&Value::Array(answers))?;
    }
    Ok(())
}

async fn put(client: &Client, entry: &manifest::Entry, query: &str) -> Result<Value, Failed> {
    let mut there = client.clone();
    if let Some(namespace) = &entry.namespace {
        there.namespace.clone_from(namespace);
    }
    let path = there.function(&entry.name, "") + query;
    there.send(Method::PUT, &path, &entry.spec).await.map_err(|e| match e {
        Failed::Refused(text, answer) => Failed::Refused(format!("{}: {text}", entry.name), answer),
        other => other,
    })
}

/// Lists functions.
pub async fn list(client: &Client, of: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let (name, all) = match of {
        Some(function) => ("instances", instances(client, function).await?),
        None => ("functions", functions(client).await?),
    };
    if as_json {
        return output::print_json(&json!({name: all}));
    }
    show(&all)
}

async fn instances(client: &Client, function: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("/v1/namespaces/{}/functions/{}/instances", segment(&client.namespace), segment(function));
    let mut answer = client.get(&path).await?;
    Ok(answer["instances"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

async fn functions(client: &Client) -> anyhow::Result<Vec<Value>> {
    let base = format!("/v1/namespaces/{}/functions?limit=1000", segment(&client.namespace));
    let mut path = base.clone();
    let mut all = Vec::new();
    loop {
        let mut page = client.get(&path).await?;
        if let Value::Array(functions) = page["functions"].take() {
            all.extend(functions);
        }
        match page["next"].as_str() {
            Some(next) => path = format!("{base}&after={}", segment(next)),
            None => return Ok(all),
        }
    }
}

fn show(all: &[Value]) -> anyhow::Result<()> {
    print_list(
        all,
        &[
            ("function", "/name"),
            ("revision", "/revision"),
            ("live", "/live_revision"),
            ("backlog", "/stats/backlog"),
            ("running", "/stats/running"),
            ("starting", "/stats/containers/starting"),
            ("idle", "/stats/containers/idle"),
            ("busy", "/stats/containers/busy"),
            ("desired", "/stats/desired"),
        ],
    )
}

/// Removes a function.
pub async fn remove(client: &Client, function: &str, as_json: bool) -> anyhow::Result<()> {
    client.send(Method::DELETE, &client.function(function, ""), &Value::Null).await?;
    if as_json {
        return output::print_json(&json!({"removed": function}));
    }
    output::print(format!("removed {function}"))
}

/// Shows settings, or changes and shows them.
pub async fn autoscaler(
    client: &Client,
    function: &str,
    values: [Option<u32>; 4],
    reset: &[String],
    as_json: bool,
) -> anyhow::Result<()> {
    let mut patch = Map::new();
    for (name, value) in SETTINGS.iter().zip(values) {
        patch.extend(value.map(|v| ((*name).to_owned(), json!(v))));
    }
    for name in reset {
        // The flag that sets a field names it too: `--reset max`.
        let named = SETTINGS.iter().zip(FLAGS).find(|(setting, flag)| *setting == name || flag == name);
        let Some((setting, _)) = named else {
            return Err(Failed::Usage(format!("--reset {name}: must be one of {}", SETTINGS.join(", "))).into());
        };
        if patch.insert((*setting).to_owned(), Value::Null).is_some() {
            return Err(
                Failed::Usage(format!("--reset {name}: the same field cannot be set and dropped at once")).into()
            );
        }
    }
    let path = client.function(function, "autoscaler");
    let settings = if patch.is_empty() {
        client.get(&path).await?
    } else {
        client.send(Method::PATCH, &path, &Value::Object(patch)).await?
    };
    if as_json {
        return output::print_json(&settings);
    }
    for warning in settings["warnings"].as_array().into_iter().flatten() {
        crate::output::say(format!("warning: {}", output::text(warning)));
    }
    let profiles: Vec<String> = settings["profiles"].as_array().into_iter().flatten().map(output::text).collect();
    if !profiles.is_empty() {
        output::print(format!("profiles that hold now: {}", profiles.join(", ")))?;
    }
    let rows = SETTINGS.iter().map(|name| {
        let cell = |of: &str| output::text(&settings[of][*name]);
        vec![(*name).to_owned(), cell("deployed"), cell("overrides"), cell("effective")]
    });
    output::print(output::table(&["setting", "deployed", "override", "effective"], rows))
}

/// Lists the revisions that are kept.
pub async fn revisions(client: &Client, function: &str, as_json: bool) -> anyhow::Result<()> {
    let fields = [
        ("revision", "/revision"),
        ("deployed", "/deployed_at"),
        ("live", "/live"),
        ("command", "/spec/runtime/process/command/0"),
        ("min", "/spec/autoscaler/min_containers"),
        ("max", "/spec/autoscaler/max_containers"),
    ];
    super::list(client, &client.function(function, "revisions"), "revisions", &fields, as_json).await
}

/// Deploys what an earlier revision was.
pub async fn rollback(
    client: &Client,
    function: &str,
    to: Option<u32>,
    wait: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    let path = client.function(function, "rollback") + if wait { "?wait_s=3600" } else { "" };
    let answer = client.send(Method::POST, &path, &json!({"revision": to})).await?;
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        output::say(format!("warning: {}", output::text(warning)));
    }
    if as_json {
        return output::print_json(&answer);
    }
    let to = to.map_or("the revision before".into(), |number| format!("revision {number}"));
    output::print(format!("{function} is as {to} was: revision {}", output::text(&answer["revision"])))
}

/// Prints a function as a manifest.
pub async fn get(client: &Client, function: &str, format: ManifestFormat) -> anyhow::Result<()> {
    let told = client.get(&client.function(function, "")).await?;
    let mut manifest = Map::new();
    manifest.insert("name".into(), told["name"].clone());
    manifest.insert("namespace".into(), told["namespace"].clone());
    manifest.extend(told["spec"].as_object().cloned().unwrap_or_default());
    let env = told["spec"].pointer("/runtime/process/env").and_then(Value::as_object);
    if env.is_some_and(|env| env.values().any(|value| value == "***")) {
        output::say("warning: the token may not see the values of `env`: they stand as *** and must be put in");
    }
    match format {
        ManifestFormat::Json => output::print_json(&Value::Object(manifest)),
        ManifestFormat::Yaml => {
            let text = serde_saphyr::to_string(&manifest)?;
            output::print(text.trim_end())
        }
    }
}
