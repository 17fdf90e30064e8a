//! The configuration of `up`: defaults, then the file, then the environment, then flags; and where each value came from.

use crate::cli::UpArgs;
use anyhow::{Context, bail};
use capstan_scheduler::config::SchedulerConfig;
use capstan_worker::config::WorkerConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Both halves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The scheduler's.
    pub scheduler: SchedulerConfig,
    /// The worker's.
    pub worker: WorkerConfig,
}

/// Settings, and for each key where its value came from.
pub struct Loaded {
    /// What holds.
    pub settings: Settings,
    /// Key, value and origin, by key.
    pub origins: BTreeMap<String, (Value, String)>,
}

/// Short names for what is set most.
const SHORT: [(&str, &str); 3] = [
    ("CAPSTAN_LISTEN", "scheduler.listen"),
    ("CAPSTAN_DATA_DIR", "scheduler.data_dir"),
    ("CAPSTAN_TOKENS", "scheduler.tokens"),
];

/// Loads the settings that `args` and the environment ask for.
pub fn load(args: &UpArgs) -> anyhow::Result<Loaded> {
    let mut origins = BTreeMap::new();
    let defaults = Table::try_from(Settings::default())?;
    flatten("", &defaults, "default", &mut origins);
    // Settings that are absent by default.
    for key in ["worker.cpu", "worker.memory_mib"] {
        origins.entry(key.into()).or_insert((Value::String(String::new()), "unset".into()));
    }
    if let Some(path) = &args.config {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        // Read as a whole first: its own errors name line and column.
        toml::from_str::<Settings>(&text).with_context(|| format!("{} is not valid", path.display()))?;
        flatten("", &text.parse::<Table>()?, &path.display().to_string(), &mut origins);
    }
    for (variable, text) in std::env::vars().filter(|(name, _)| name.starts_with("CAPSTAN_")) {
        let short = SHORT.iter().find(|(name, _)| *name == variable).map(|(_, key)| (*key).to_owned());
        let long = ["CAPSTAN_SCHEDULER__", "CAPSTAN_WORKER__"].iter().any(|p| variable.starts_with(p));
        let key = short.or_else(|| long.then(|| variable["CAPSTAN_".len()..].replace("__", ".").to_lowercase()));
        if let Some(key) = key {
            set(&mut origins, &key, &text, &variable)?;
        }
    }
    if let Some(listen) = &args.listen {
        set(&mut origins, "scheduler.listen", &address(listen)?, "--listen")?;
    }
    if let Some(folder) = &args.data_dir {
        set(&mut origins, "scheduler.data_dir", &folder.display().to_string(), "--data-dir")?;
    }
    if let Some(runtime) = &args.runtime {
        set(&mut origins, "worker.runtime", runtime, "--runtime")?;
    }
    for pair in &args.set {
        let Some((key, text)) = pair.split_once('=') else { bail!("--set {pair}: write it as KEY=VALUE") };
        set(&mut origins, key, text, "--set")?;
    }
    // One folder for both halves, unless the worker has its own.
    if let Some((folder, origin)) = origins.get("scheduler.data_dir").cloned()
        && origins["worker.data_dir"].1 == "default"
    {
        origins.insert("worker.data_dir".into(), (folder, origin));
    }
    let mut settings: Settings = unflatten(&origins).try_into().context("the configuration is not valid")?;
    settings.scheduler.read_tokens().map_err(anyhow::Error::msg)?;
    Ok(Loaded { settings, origins })
}

/// An address as people write it: `localhost` is this machine, and so is nothing before the port.
fn address(text: &str) -> anyhow::Result<String> {
    let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':'));
    let address = port.map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    let read = address.parse::<std::net::SocketAddr>();
    read.map(|address| address.to_string())
        .map_err(|_| anyhow::anyhow!("--listen must be an address and a port, like 127.0.0.1:7070, is `{text}`"))
}

fn flatten(prefix: &str, table: &Table, origin: &str, into: &mut BTreeMap<String, (Value, String)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => flatten(&key, inner, origin, into),
            value => {
                into.insert(key, (value.clone(), origin.into()));
            }
        }
    }
}

fn unflatten(origins: &BTreeMap<String, (Value, String)>) -> Table {
    let mut root = Table::new();
    for (key, (value, _)) in origins.iter().filter(|(_, (_, origin))| origin != "unset") {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut table = &mut root;
        for part in parts {
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else { return root };
            table = inner;
        }
        table.insert(last.into(), value.clone());
    }
    root
}

/// Sets a key from a text, in the form that the key's default has.
fn set(origins: &mut BTreeMap<String, (Value, String)>, key: &str, text: &str, origin: &str) -> anyhow::Result<()> {
    let Some((before, was)) = origins.get(key) else {
        bail!("{origin}: there is no setting `{key}`; `capstan config` lists them");
    };
    let wrong = |what: &str| format!("{origin}: `{key}` must be {what}, is `{text}`");
    let value = match before {
        Value::String(_) if was == "unset" => text.parse().map(Value::Float).with_context(|| wrong("a number"))?,
        Value::Integer(_) => Value::Integer(text.parse().with_context(|| wrong("a whole number"))?),
        Value::Float(_) => Value::Float(text.parse().with_context(|| wrong("a number"))?),
        Value::Boolean(_) => Value::Boolean(text.parse().with_context(|| wrong("true or false"))?),
        Value::Array(_) if text.trim_start().starts_with('[') => {
            let written: Table = format!("list = {text}").parse().with_context(|| wrong("a list"))?;
            written.get("list").cloned().with_context(|| wrong("a list"))?
        }
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|t| !t.is_empty());
            Value::Array(items.map(|t| Value::String(t.into())).collect())
        }
        _ => Value::String(text.into()),
    };
    let value = match (key, value) {
        ("worker.memory_mib", Value::Float(n)) => Value::Integer(n as i64),
        (_, value) => value,
    };
    origins.insert(key.into(), (value, origin.into()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_layers_win_and_say_so() {
        let args = UpArgs {
            listen: Some("127.0.0.1:0".into()),
            set: vec!["scheduler.limits.map_running=7".into(), "worker.cpu=1.5".into()],
            ..UpArgs::default()
        };
        let loaded = load(&args).unwrap();
        assert_eq!(loaded.settings.scheduler.limits.map_running, 7);
        assert_eq!(loaded.settings.worker.cpu, Some(1.5));
        assert_eq!(loaded.origins["scheduler.listen"].1, "--listen");
        assert_eq!(loaded.origins["scheduler.rate_per_s"].1, "default");
    }

    #[test]
    fn a_list_is_written_with_commas_or_as_in_the_file() {
        let list = |text: &str| {
            let args = UpArgs { set: vec![format!("scheduler.tls_names={text}")], ..UpArgs::default() };
            load(&args).map(|loaded| loaded.settings.scheduler.tls_names).map_err(|e| e.to_string())
        };
        assert_eq!(list("a, b").unwrap(), ["a", "b"]);
        assert_eq!(list(r#"["a", "b"]"#).unwrap(), ["a", "b"]);
        assert!(list(r#"["a""#).unwrap_err().contains("must be a list"));
    }

    #[test]
    fn unknown_and_wrong_settings_are_named() {
        let error = |pair: &str| {
            let args = UpArgs { set: vec![pair.into()], ..UpArgs::default() };
            load(&args).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(error("scheduler.speed=1").contains("no setting `scheduler.speed`"));
        assert!(error("scheduler.rate_per_s=fast").contains("must be a whole number, is `fast`"));
        assert!(error("nonsense").contains("KEY=VALUE"));
    }
}
