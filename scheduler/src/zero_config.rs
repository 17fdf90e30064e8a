//! The scale-to-zero configuration: read as operators write it, and as it is stored.

use crate::store::stored::{self, stored};
use capstan_common::refusal::{FieldError, Refusal};
use capstan_scheduler_core::scale_to_zero::{Config, Effective, VARIABLE, Warning};
use serde_json::{Map, Value};

/// Names of the ConfigMap: the guide's, and the one it has upstream today (SPEC D11).
const CONFIG_MAPS: [&str; 2] = ["model-scale-to-zero-config", "wva-model-scale-to-zero-config"];

/// The scale-to-zero configuration in force.
#[derive(Debug, Default)]
pub struct ZeroConfig {
    /// As it was put: entries by key, each an object or a text block.
    pub data: Map<String, Value>,
    /// What of it holds.
    pub config: Config,
    /// What of it does not.
    pub warnings: Vec<Warning>,
    /// The value of the environment's variable, if it is set.
    pub environment: Option<String>,
}

impl ZeroConfig {
    /// Reads entries; text blocks are YAML.
    pub fn read(data: Map<String, Value>) -> Self {
        let mut blocks = Vec::new();
        let parsed = data.iter().map(|(key, value)| {
            let value = match value {
                Value::String(text) => match yaml(text) {
                    Ok(value) => value,
                    Err(error) => {
                        let detail = format!("is left out: its text is not YAML: {error}");
                        blocks.push(Warning { entry: key.clone(), detail });
                        return None;
                    }
                },
                other => other.clone(),
            };
            Some((key.clone(), value))
        });
        let parsed: Map<String, Value> = parsed.flatten().collect();
        let (config, mut warnings) = Config::read(&parsed);
        warnings.extend(blocks);
        Self { data, config, warnings, environment: std::env::var(VARIABLE).ok() }
    }

    /// What holds for a model in a namespace.
    pub fn effective(&self, model: &str, namespace: &str) -> Effective {
        self.config.effective(model, namespace, self.environment.as_deref())
    }
}

/// Reads YAML 1.2 as JSON has it: `on`, `off`, `y` and `n` are texts.
pub fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
        .map_err(|error| error.to_string())
}

/// The entries of a document: a whole ConfigMap, or its data alone.
pub fn entries_of(document: Value) -> Result<Map<String, Value>, Refusal> {
    let at = |pointer: &str, detail| Refusal::fields(vec![FieldError { pointer: pointer.into(), detail }]);
    let wrong = |detail: &str| at("", detail.into());
    let Value::Object(mut root) = document else {
        return Err(wrong("must be an object: the entries by their keys, or a ConfigMap that has them under `data`"));
    };
    let whole = root.get("kind").is_some_and(|kind| kind == "ConfigMap") || root.contains_key("apiVersion");
    if whole {
        let kind = root.get("kind").and_then(Value::as_str).unwrap_or_default();
        if kind != "ConfigMap" {
            return Err(at("/kind", format!("must be ConfigMap, is `{kind}`: this is another manifest")));
        }
        let name = root.get("metadata").and_then(|metadata| metadata["name"].as_str());
        if let Some(name) = name.filter(|name| !CONFIG_MAPS.contains(name)) {
            return Err(at("/metadata/name", format!("must be {}, is `{name}`", CONFIG_MAPS.join(" or "))));
        }
    }
    match root.remove("data") {
        Some(Value::Object(data)) if whole => Ok(data),
        Some(Value::Null) | None if whole => Ok(Map::new()),
        Some(data) if whole => Err(wrong(&format!("`data` must be an object, is {data}"))),
        Some(data) => {
            root.insert("data".into(), data);
            Ok(root)
        }
        None => Ok(root),
    }
}

/// The scale-to-zero configuration as it is stored: as JSON.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ZeroText(pub String);

stored! {
    ZeroText, "the scale-to-zero configuration", vec![ZeroText(r#"{"default":{"retention_period":"5m"}}"#.into())];
}

/// The scale-to-zero configuration as it is stored. One that cannot be read is told of, and holds nothing: that is no reason
/// not to serve functions.
pub fn zero_of(value: &[u8]) -> Option<Map<String, Value>> {
    let text = stored::decode::<ZeroText>(value).map(|text| text.0).map_err(|error| error.to_string());
    match text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string())) {
        Ok(data) => Some(data),
        Err(error) => {
            tracing::error!(error, "the stored scale-to-zero configuration cannot be read: put it once more");
            None
        }
    }
}
