//! Parameters of functions, and instances: a function with values for them, with a pool, settings and numbers of its own.
//!
//! An instance is named like `my-app.Model;size=xl;version=3.5`: behind the function's name, each parameter whose value is not
//! its default, in alphabetical order, values percent-encoded. The same values always give the same name.

use crate::{
    function::FunctionSpec,
    id::FunctionKey,
    refusal::{FieldError, Refusal},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Between a function's name and its parameters, and between those.
pub const SEPARATOR: char = ';';
/// Parameters of a function, at most.
pub const MOST: usize = 32;
/// Characters of all values of an instance, at most, as they stand in its name.
const VALUES_CHARS: usize = 1024;
/// What stands in a name as it is; all else is percent-encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// One parameter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Parameter {
    /// What its values are.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Its value where none is given; without one it must be given.
    pub default: Option<Value>,
}

/// What a parameter's values are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = ParameterType))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Any text.
    #[default]
    String,
    /// A whole number of 64 bits.
    Integer,
    /// `true` or `false`.
    Boolean,
}

impl Kind {
    fn read(self, text: &str) -> Option<Value> {
        match self {
            Self::String => Some(text.into()),
            Self::Integer => text.parse::<i64>().ok().map(Value::from),
            Self::Boolean => text.parse::<bool>().ok().map(Value::from),
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Self::String => value.is_string(),
            Self::Integer => value.is_i64(),
            Self::Boolean => value.is_boolean(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Integer => "a whole number",
            Self::Boolean => "true or false",
        }
    }
}

/// Whether the key names an instance.
pub fn is_instance(key: &FunctionKey) -> bool {
    key.name.contains(SEPARATOR)
}

/// The function of an instance; of a function, itself.
pub fn base(key: &FunctionKey) -> FunctionKey {
    let name = key.name.split(SEPARATOR).next().unwrap_or_default();
    FunctionKey { namespace: key.namespace.clone(), name: name.into() }
}

/// Checks what a spec says of parameters; each wrong thing by its pointer.
pub fn check(spec: &FunctionSpec) -> Vec<FieldError> {
    let mut wrong = Vec::new();
    let mut tell = |pointer: String, detail: String| wrong.push(FieldError { pointer, detail });
    if spec.parameters.len() > MOST {
        tell("/parameters".into(), format!("must be at most {MOST}, are {}", spec.parameters.len()));
    }
    if spec.schedule.is_some() && missing(spec).is_err() {
        tell("/schedule".into(), "a scheduled function needs a default for each of its parameters".into());
    }
    let mut upper = std::collections::BTreeSet::new();
    for (name, parameter) in &spec.parameters {
        if !upper.insert(name.to_uppercase()) {
            tell(format!("/parameters/{name}"), "another parameter has the same name but for its case".into());
        }
        if let Some(text) = parameter.default.as_ref().and_then(Value::as_str)
            && (text.contains('\0') || text.len() > VALUES_CHARS)
        {
            let detail = format!("must have at most {VALUES_CHARS} bytes and no NUL character");
            tell(format!("/parameters/{name}/default"), detail);
        }
        let clean = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !(1..=64).contains(&name.len()) || !name.chars().all(clean) {
            let detail = "a parameter's name must match [a-zA-Z0-9_]{1,64}".to_owned();
            tell(format!("/parameters/{}", name.replace('~', "~0").replace('/', "~1")), detail);
        }
        if let Some(default) = parameter.default.as_ref().filter(|default| !parameter.kind.fits(default)) {
            let detail = format!("must be {}, is {default}", parameter.kind.name());
            tell(format!("/parameters/{name}/default"), detail);
        }
    }
    wrong
}

/// The instance that a name asks for, of a function with this spec: its own name, and its spec.
pub fn bind(asked: &FunctionKey, spec: &FunctionSpec) -> Result<(FunctionKey, FunctionSpec), Refusal> {
    let function = base(asked);
    let wrong = |name: &str, detail: String| Refusal::field(&format!("parameters/{name}"), detail);
    let mut given: BTreeMap<String, Value> = BTreeMap::new();
    for part in asked.name.split(SEPARATOR).skip(1).filter(|part| !part.is_empty()) {
        let (name, text) = part
            .split_once('=')
            .ok_or_else(|| wrong(part, format!("write it as {}{SEPARATOR}name=value", function.name)))?;
        let Some(parameter) = spec.parameters.get(name) else {
            let known: Vec<&str> = spec.parameters.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
            return Err(wrong(name, format!("is no parameter of function `{}`; {known}", function.name)));
        };
        let text = percent_decode_str(text).decode_utf8().map_err(|_| wrong(name, "is not UTF-8".into()))?;
        if text.contains('\0') {
            return Err(wrong(name, "must not contain a NUL character".into()));
        }
        let value = parameter.kind.read(&text);
        let value = value.ok_or_else(|| wrong(name, format!("must be {}, is `{text}`", parameter.kind.name())))?;
        if given.insert(name.to_owned(), value).is_some() {
            return Err(wrong(name, "is given twice".into()));
        }
    }
    given.retain(|name, value| spec.parameters[name].default.as_ref() != Some(value));
    let mut name = function.name.to_string();
    for (parameter, value) in &given {
        let text = as_text(value);
        name.extend([SEPARATOR]);
        name.push_str(&format!("{parameter}={}", utf8_percent_encode(&text, ENCODED)));
    }
    if name.len() - function.name.len() > VALUES_CHARS {
        return Err(Refusal::field(
            "parameters",
            format!("all values together must have at most {VALUES_CHARS} characters"),
        ));
    }
    let bound = FunctionSpec { bound: given, schedule: None, ..spec.clone() };
    missing(&bound)?;
    Ok((FunctionKey::new(&function.namespace, &name), bound))
}

/// Refuses work for a spec of which a parameter has no value.
pub fn missing(spec: &FunctionSpec) -> Result<(), Refusal> {
    let without = spec.parameters.iter().find(|(name, p)| p.default.is_none() && !spec.bound.contains_key(*name));
    match without {
        Some((name, _)) => {
            let detail = format!("has no default and must be given, like FUNCTION{SEPARATOR}{name}=VALUE");
            Err(Refusal::field(&format!("parameters/{name}"), detail))
        }
        None => Ok(()),
    }
}

/// What a container finds in its environment: all values as JSON, and each by its name.
pub fn environment(spec: &FunctionSpec) -> Vec<(String, String)> {
    if spec.parameters.is_empty() {
        return Vec::new();
    }
    let defaults = spec.parameters.iter().filter_map(|(name, p)| Some((name.clone(), p.default.clone()?)));
    let mut values: BTreeMap<String, Value> = defaults.collect();
    values.extend(spec.bound.clone());
    let all = serde_json::to_string(&values).unwrap_or_default();
    let each =
        values.iter().map(|(name, value)| (format!("CAPSTAN_PARAMETER_{}", name.to_uppercase()), as_text(value)));
    [("CAPSTAN_PARAMETERS".to_owned(), all)].into_iter().chain(each).collect()
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> FunctionSpec {
        serde_json::from_str(
            r#"{"runtime":{"process":{"command":["true"]}},"parameters":{
                "version":{}, "size":{"type":"integer","default":7}, "fast":{"type":"boolean","default":false}}}"#,
        )
        .unwrap()
    }

    fn name(asked: &str) -> Result<String, Refusal> {
        bind(&FunctionKey::new("default", asked), &spec()).map(|(key, _)| key.name.to_string())
    }

    #[test]
    fn the_same_values_give_the_same_instance_however_they_are_written() {
        // SPEC D11 D12
        for same in [
            "M;version=3.5;fast=true",
            "M;fast=true;version=3.5",
            "M;version=3%2E5;size=7;fast=true",
            "M;;version=3.5;fast=true",
        ] {
            assert_eq!(name(same).unwrap(), "M;fast=true;version=3.5");
        }
        assert_eq!(name("M;version=a/b;size=-1").unwrap(), "M;size=-1;version=a%2Fb");
        assert_eq!(name("M;version=a%2Fb;size=-1").unwrap(), "M;size=-1;version=a%2Fb");
        assert_ne!(name("M;version=3.5").unwrap(), name("M;version=4").unwrap());
    }

    #[test]
    fn wrong_values_are_named_by_their_parameter() {
        for (asked, pointer, detail) in [
            ("M;version=1;size=x", "/parameters/size", "must be a whole number, is `x`"),
            ("M;version=1;fast=yes", "/parameters/fast", "must be true or false, is `yes`"),
            ("M;version=1;other=2", "/parameters/other", "is no parameter of function `M`; it has fast, size, version"),
            ("M;version=1;version=2", "/parameters/version", "is given twice"),
            ("M;version", "/parameters/version", "write it as M;name=value"),
            ("M;size=1", "/parameters/version", "has no default"),
            ("M;version=%FF", "/parameters/version", "is not UTF-8"),
        ] {
            let refusal = name(asked).unwrap_err();
            assert_eq!(refusal.errors[0].pointer, pointer, "{asked}");
            assert!(refusal.errors[0].detail.contains(detail), "{asked}: {}", refusal.detail);
        }
        assert!(name(&format!("M;version={}", "x".repeat(2000))).is_err());
    }

    #[test]
    fn a_container_finds_its_values_and_the_defaults() {
        // SPEC D13
        let (_, bound) = bind(&FunctionKey::new("default", "M;version=3.5"), &spec()).unwrap();
        let environment: BTreeMap<_, _> = environment(&bound).into_iter().collect();
        assert_eq!(environment["CAPSTAN_PARAMETERS"], r#"{"fast":false,"size":7,"version":"3.5"}"#);
        assert_eq!(environment["CAPSTAN_PARAMETER_SIZE"], "7");
        assert_eq!(environment["CAPSTAN_PARAMETER_VERSION"], "3.5");
    }
}
