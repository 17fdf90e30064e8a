//! Manifests: one function, or a list under `functions:`, in YAML, TOML or JSON; YAML may hold several documents.

use crate::client::Failed;
use serde_json::{Map, Value};
use std::path::Path;

/// The longest manifest, in bytes.
const LONGEST: u64 = 16 << 20;

/// One function to deploy.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// Its namespace, if the manifest names one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its spec.
    pub spec: Value,
}

fn usage(path: &Path, what: impl std::fmt::Display) -> Failed {
    Failed::Usage(format!("{}: {what}", path.display()))
}

/// Reads a manifest. Relative working folders are taken from the manifest's own folder.
pub fn read(path: &Path) -> Result<Vec<Entry>, Failed> {
    let size = std::fs::metadata(path).map_or(0, |found| found.len());
    if size > LONGEST {
        return Err(usage(path, format!("has {size} bytes; a manifest has at most {LONGEST}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| usage(path, format!("cannot be read: {e}")))?;
    parse(path, &text)
}

/// Reads the text of a manifest, which is in the language that the path's extension names.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, Failed> {
    let documents: Vec<Value> = match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => vec![toml::from_str(text).map_err(|e| usage(path, e))?],
        Some("json") => vec![serde_json::from_str(text).map_err(|e| usage(path, e))?],
        // YAML 1.2: `on`, `off`, `y` and `n` are texts.
        _ => serde_saphyr::from_multiple_with_options(text, serde_saphyr::options! { strict_booleans: true })
            .map_err(|e| usage(path, e))?,
    };
    let folder = path.canonicalize().ok().and_then(|p| p.parent().map(Path::to_path_buf)).unwrap_or_default();
    let mut listed = Vec::new();
    for document in documents {
        listed.extend(functions(path, document)?);
    }
    if listed.is_empty() {
        return Err(usage(path, "holds no function: there is nothing to deploy"));
    }
    let numbered = listed.into_iter().enumerate();
    let entries: Vec<Entry> =
        numbered.map(|(position, value)| entry(path, &folder, position, value)).collect::<Result<_, _>>()?;
    for (position, entry) in entries.iter().enumerate() {
        let same = |other: &Entry| (&other.namespace, &other.name) == (&entry.namespace, &entry.name);
        if entries[..position].iter().any(same) {
            return Err(usage(path, format!("functions[{position}]: `{}` is there twice", entry.name)));
        }
    }
    Ok(entries)
}

/// The functions of one document.
fn functions(path: &Path, document: Value) -> Result<Vec<Value>, Failed> {
    let Value::Object(mut root) = document else {
        return Err(usage(path, "must hold one function (with `name:`), or a list under `functions:`"));
    };
    match root.remove("functions") {
        None => Ok(vec![Value::Object(root)]),
        Some(_) if !root.is_empty() => {
            let other = root.keys().next().cloned().unwrap_or_default();
            Err(usage(path, format!("`{other}` cannot stand beside `functions`")))
        }
        Some(Value::Array(listed)) => Ok(listed),
        Some(_) => Err(usage(path, "`functions` must be a list")),
    }
}

fn entry(path: &Path, folder: &Path, position: usize, value: Value) -> Result<Entry, Failed> {
    let Value::Object(mut spec) = value else {
        return Err(usage(path, format!("functions[{position}] must be a function's spec")));
    };
    let mut text = |field: &str| match spec.remove(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(usage(path, format!("functions[{position}].{field} must be a text, is {other}"))),
    };
    let namespace = text("namespace")?;
    let name = text("name")?.ok_or_else(|| usage(path, format!("functions[{position}] has no `name`")))?;
    if let Err(refusal) = capstan_common::validate::function_key(namespace.as_deref().unwrap_or("default"), &name) {
        return Err(usage(path, format!("functions[{position}]: {}", refusal.detail)));
    }
    place(&mut spec, folder);
    let spec = Value::Object(spec);
    // The scheduler checks again; here the file's name can be told.
    serde_path_to_error::deserialize::<_, capstan_common::function::FunctionSpec>(&spec).map_err(|e| {
        let field = e.path().to_string();
        usage(path, format!("{name}: {field}: {}", e.into_inner()))
    })?;
    Ok(Entry { namespace, name, spec })
}

fn place(spec: &mut Map<String, Value>, folder: &Path) {
    let process = spec.get_mut("runtime").and_then(|r| r.get_mut("process"));
    if let Some(Value::String(text)) = process.and_then(|p| p.get_mut("working_dir"))
        && Path::new(text).is_relative()
    {
        *text = folder.join(&*text).display().to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<Entry>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn yaml_and_toml_hold_one_function_or_a_list() {
        let yaml = read_text("f.yaml", "name: f\nruntime: {process: {command: [cat]}}\n").unwrap();
        let toml = read_text("f.toml", "name = 'f'\n[runtime.process]\ncommand = ['cat']\n").unwrap();
        assert_eq!(yaml, toml);
        let listed = read_text(
            "l.yaml",
            "functions:\n- {name: a, runtime: {process: {command: [cat]}}}\n- {name: b, namespace: team, runtime: {process: {command: [cat]}}}\n",
        );
        assert_eq!(listed.unwrap()[1].namespace.as_deref(), Some("team"));
        let one = |name: &str| format!("---\nname: {name}\nruntime: {{process: {{command: [cat]}}}}\n");
        let documents = read_text("d.yaml", &(one("a") + &one("b") + "---\n")).unwrap();
        assert_eq!(documents.iter().map(|entry| &*entry.name).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn mistakes_are_told_with_file_and_field() {
        for (text, said) in [
            ("runtime: {process: {command: [cat]}}", "no `name`"),
            ("name: f\nruntime: {process: {comand: [cat]}}", "comand"),
            ("name: f\nruntime: {process: {command: [cat]}}\ntimeout: 3", "timeout"),
            ("functions: 3", "must be a list"),
            ("functions: []\nname: x", "cannot stand beside"),
            ("functions: []", "nothing to deploy"),
            ("", "nothing to deploy"),
            (
                "name: f\nruntime: {process: {command: [cat]}}\n---\nname: f\nruntime: {process: {command: [cat]}}",
                "there twice",
            ),
            ("- 1", "must hold one function"),
            ("name: [", "f.yaml"),
        ] {
            let error = read_text("f.yaml", text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
