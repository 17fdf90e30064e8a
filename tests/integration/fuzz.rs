//! Requests drawn from the interface's own description, right and wrong: every answer is one that the description knows, and
//! none is our own fault. `CAPSTAN_FUZZ=N` sends N requests to each operation.

use crate::fresh;
use capstan_tests::real::{Up, echo};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Requests to each operation in an ordinary run.
const CASES: usize = 40;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

struct Draw<'a> {
    rng: StdRng,
    document: &'a Value,
    calls: Vec<String>,
}

impl Draw<'_> {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from.choose(&mut self.rng).expect("something to pick").clone()
    }

    /// Any value at all.
    fn junk(&mut self) -> Value {
        let known = [
            json!(null),
            json!(true),
            json!(-1),
            json!(0),
            json!(u64::MAX),
            json!(1.5),
            json!(1e300),
            json!(""),
            json!("\u{0}"),
            json!("../../etc"),
            json!("x".repeat(5000)),
            json!("ünï"),
            json!([]),
            json!({}),
            json!([[[[[1]]]]]),
            json!({"a": {"b": null}}),
        ];
        self.pick(&known)
    }

    /// A value by its schema; now and then one that breaks it.
    fn value(&mut self, schema: &Value) -> Value {
        if self.chance(8) {
            return self.junk();
        }
        if let Some(path) = schema["$ref"].as_str() {
            let named = self.document.pointer(path.trim_start_matches('#')).expect("a schema").clone();
            return self.value(&named);
        }
        if let Some(one) = schema["oneOf"].as_array().or(schema["enum"].as_array()) {
            let picked = self.pick(one);
            return if schema["oneOf"].is_array() { self.value(&picked) } else { picked };
        }
        let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
        match self.pick(&kinds).as_str().unwrap_or("any") {
            "null" => Value::Null,
            "boolean" => json!(self.chance(50)),
            "integer" | "number" => {
                let low = schema["minimum"].as_i64().unwrap_or(0);
                let high = schema["maximum"].as_i64().unwrap_or(low + 3).min(low + 1000);
                json!(self.rng.random_range(low - 1..=high + 1))
            }
            "string" => self.pick(&[json!("a"), json!("text"), json!(""), json!("true")]),
            "array" => {
                let count = self.rng.random_range(0..3);
                (0..count).map(|_| self.value(&schema["items"])).collect()
            }
            "object" => self.object(schema),
            _ => self.junk(),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let mut object = Map::new();
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            if required.contains(&json!(name)) || self.chance(30) {
                let value = self.value(of);
                object.insert(name.clone(), value);
            }
        }
        if self.chance(5) {
            object.insert("unheard_of".into(), json!(1));
        }
        Value::Object(object)
    }

    fn body(&mut self, content: &Value) -> Vec<u8> {
        let Some((media, of)) = content.as_object().and_then(|c| c.iter().next()) else { return Vec::new() };
        let lines = if media.contains("ndjson") { self.rng.random_range(0..20) } else { 1 };
        let mut body = Vec::new();
        for _ in 0..lines {
            let value = self.value(&of["schema"]);
            body.extend(value.to_string().into_bytes());
            body.push(b'\n');
        }
        if self.chance(8) && !body.is_empty() {
            let (place, byte) = (self.rng.random_range(0..body.len()), self.rng.random());
            body[place] = byte;
        }
        body
    }

    fn parameter(&mut self, name: &str, schema: &Value) -> String {
        let call = self.calls.last().cloned().unwrap_or_default();
        let known = match name {
            "ns" => "default".to_owned(),
            "fn" => self.pick(&["echo", "fuzzed", "none"]).to_owned(),
            "index" => self.rng.random_range(0..5).to_string(),
            "id" => call,
            "wait_s" => "0.01".into(),
            "follow" => "false".into(),
            _ => match self.value(schema) {
                Value::String(text) => text,
                other => other.to_string(),
            },
        };
        if self.chance(6) {
            let junk = self.junk();
            return junk.as_str().map_or_else(|| junk.to_string(), str::to_owned);
        }
        known
    }
}

/// One request; answers the method, the address, the status and what is wrong with the answer.
async fn one(up: &Up, draw: &mut Draw<'_>, method: &str, path: &str, operation: &Value) -> Option<String> {
    let mut url = reqwest::Url::parse(&up.at("/")).expect("an address");
    let (mut filled, mut headers, mut query) = (path.to_owned(), Vec::new(), Vec::new());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().expect("a name");
        let wanted = parameter["in"] == "path" || draw.chance(25);
        if !wanted {
            continue;
        }
        let value = draw.parameter(name, &parameter["schema"]);
        match parameter["in"].as_str() {
            Some("path") => {
                let segment: String = form(&value);
                filled = filled.replace(&format!("{{{name}}}"), &segment);
            }
            Some("query") => query.push((name.to_owned(), value)),
            _ => headers.push((name.to_owned(), value)),
        }
    }
    url.set_path(&filled);
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    let mut request = up.http.request(Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method"), url);
    for (name, value) in headers {
        if let Ok(value) = reqwest::header::HeaderValue::from_str(&value) {
            request = request.header(name, value);
        }
    }
    let body = draw.body(&operation["requestBody"]["content"]);
    let said = String::from_utf8_lossy(&body).into_owned();
    let response = match request.body(body).timeout(PATIENCE).send().await {
        Ok(response) => response,
        // It waits for a container that will not start soon, or for the rest of a stream.
        Err(error) if error.is_timeout() => return None,
        Err(error) => return Some(format!("{method} {path}\n{said}\n{error:?}")),
    };
    let (status, url) = (response.status().as_u16(), response.url().clone());
    let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let text = if status < 400 && path.ends_with("/logs") { String::new() } else { response.text().await.ok()? };
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(call) = answer["call_id"].as_str() {
        draw.calls.push(call.to_owned());
    }
    let described = |status: &str| !operation["responses"][status].is_null();
    let known = described(&status.to_string()) || described("default") || status == 404;
    let ours = status == 500 && answer["code"] == "internal";
    let problem = kind == "application/problem+json" && answer["code"].is_string();
    // The Prometheus door tells errors in Prometheus' own form.
    let kubernetes = path.starts_with("/apis/") && answer["kind"] == "Status";
    let theirs =
        kubernetes || path == "/api/v1/query" && answer["status"] == "error" && answer["errorType"].is_string();
    // What a container answers is passed on as it is.
    let explained = status < 400 || problem || theirs || path.starts_with("/web/");
    (!known || ours || !explained).then(|| format!("{method} {url}\n{said}\n{status} {kind}: {text}"))
}

/// A text as one segment of a path.
fn form(text: &str) -> String {
    let escape = |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(escape).collect()
}

#[tokio::test]
async fn requests_drawn_from_the_description_never_meet_a_fault_of_ours() {
    let cases = std::env::var("CAPSTAN_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let (folder, up) = fresh(&["--set", "scheduler.limits.start_tries=1"]);
    up.deploy("echo", echo("", json!({"timeout_s": 1})).unwrap()).await.unwrap();
    let document = up.get("/openapi.json").await.unwrap();
    let mut draw = Draw { rng: StdRng::seed_from_u64(20), document: &document, calls: Vec::new() };
    let mut wrong = Vec::new();
    for _ in 0..cases {
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                // Endless by nature, and what would take the only worker, the echo function or the open door away.
                let tokens = path == "/v1/tokens" && method == "post";
                let apart = path == "/v1/events"
                    || path.ends_with("/drain")
                    || path.ends_with("/revoke")
                    || method == "delete"
                    || tokens;
                if !apart {
                    wrong.extend(one(&up, &mut draw, method, path, operation).await);
                }
            }
        }
        if wrong.len() > 20 {
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    // Quotas may have been drawn that leave no room.
    let free = json!({"weight": 1, "quota": {}});
    let freed = up.http.put(up.at("/v1/namespaces/default")).json(&free).send().await.unwrap();
    assert_eq!(freed.status(), 200);
    up.deploy("echo", echo("", json!({})).unwrap()).await.unwrap();
    assert_eq!(up.invoke("echo", json!([1])).await.unwrap(), (200, json!([1])));
    let log = std::fs::read_to_string(folder.path().join("data.2.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}
