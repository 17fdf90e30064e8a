//! What bodies look like: JSON schemas, made of the types that are read and written.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A schema, and those that it refers to.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Where it stands: a reference, or all of it.
    pub schema: Value,
    /// Schemas by name.
    pub named: BTreeMap<String, Value>,
}

impl Shape {
    /// A type's.
    pub fn of<T: ToSchema>() -> Self {
        let (name, mut all) = (T::name(), Vec::new());
        T::schemas(&mut all);
        all.push((name.to_string(), T::schema()));
        let write = |schema| plain(serde_json::to_value(schema).unwrap_or_default());
        let named = all.into_iter().map(|(name, schema)| (name, write(schema))).collect();
        Self { schema: json!({"$ref": format!("#/components/schemas/{name}")}), named }
    }

    /// One that is written out.
    pub fn plain(schema: Value) -> Self {
        Self { schema, named: BTreeMap::new() }
    }

    /// Text.
    pub fn text() -> Self {
        Self::plain(json!({"type": "string"}))
    }

    /// An object of somebody else's interface.
    pub fn foreign(kind: &str) -> Self {
        Self::plain(json!({"type": "object", "description": kind, "additionalProperties": true}))
    }

    /// Any JSON value.
    pub fn any() -> Self {
        Self::plain(json!({"description": "any JSON value"}))
    }

    /// Lines, each one JSON value of this shape.
    pub fn lines<T: ToSchema>() -> Self {
        let of = Self::of::<T>();
        let about = format!("NDJSON: one JSON value a line, each {}", T::name());
        Self { schema: json!({"type": "string", "description": about, "x-line": of.schema}), named: of.named }
    }
}

/// A schema as users and generators of clients read it: where in the requirements a rule comes from they need not know, and a field
/// that has a `default` is taken by generators for one that must be there, so that its description says it.
fn plain(mut schema: Value) -> Value {
    let Value::Object(fields) = &mut schema else { return schema };
    if let Some(Value::String(about)) = fields.get_mut("description") {
        while let Some(from) = about.find(" (SPEC ") {
            let to = about[from..].find(')').map_or(about.len(), |end| from + end + 1);
            about.replace_range(from..to, "");
        }
        *about = about.replace('\n', " ");
    }
    if let Some(default) = fields.remove("default") {
        let about = fields.get("description").and_then(Value::as_str).unwrap_or_default();
        let about = format!("{about} Default: {default}.").trim().to_owned();
        fields.insert("description".into(), about.into());
    }
    for (keyword, of) in fields.iter_mut() {
        match of {
            // Their names are the fields', no keywords.
            Value::Object(properties) if keyword == "properties" => {
                properties.values_mut().for_each(|property| *property = plain(property.take()));
            }
            Value::Array(several) => several.iter_mut().for_each(|one| *one = plain(one.take())),
            Value::Object(_) if keyword != "example" => *of = plain(of.take()),
            _ => {}
        }
    }
    schema
}
