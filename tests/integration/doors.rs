//! Every door with every key: all routes that the router has, all methods and some that are none, every role and place, in every
//! spelling of the path. Who is not let in by one of them is let in by none.

use crate::fresh;
use capstan_tests::{
    raw::Raw,
    real::{Up, spec},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ROOT: &str = "root-token-of-the-operator";
const SECRET: &str = "a-secret-of-theirs";
const ROLES: [&str; 4] = ["read", "invoke", "deploy", "admin"];
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "FROBNICATE"];

/// Somebody with a token.
struct Key {
    role: usize,
    everywhere: bool,
    token: String,
}

/// What lies in a namespace that is somebody else's.
struct Theirs {
    call: String,
    container: String,
}

async fn root(up: &Up, method: &str, path: &str, body: Value) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let answer = up.http.request(method, up.at(path)).bearer_auth(ROOT).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

async fn prepare(up: &Up) -> (Vec<Key>, Theirs) {
    let echo = spec(&["cat"], "exec", json!({"autoscaler": {"min_containers": 1}, "labels": {"of": SECRET}}));
    let path = "/v1/namespaces/theirs/functions/f";
    assert_eq!(root(up, "PUT", path, echo).await.0, 201);
    let (_, spawned) = root(up, "POST", &format!("{path}/spawn"), json!(SECRET)).await;
    let call = spawned["call_id"].as_str().unwrap().to_owned();
    let container = loop {
        let listed = root(up, "GET", "/v1/containers", Value::Null).await.1;
        if let Some(id) = listed["containers"][0]["id"].as_str() {
            break id.to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let mut keys = Vec::new();
    for (role, name) in ROLES.iter().enumerate() {
        for everywhere in [false, true] {
            let namespaces = if everywhere { Value::Null } else { json!(["mine"]) };
            let (status, made) = root(up, "POST", "/v1/tokens", json!({"role": name, "namespaces": namespaces})).await;
            assert_eq!(status, 201, "{made}");
            keys.push(Key { role, everywhere, token: made["token"].as_str().unwrap().into() });
        }
    }
    (keys, Theirs { call, container })
}

/// The path of a route, about what is theirs.
fn about(pattern: &str, theirs: &Theirs) -> String {
    let id = match pattern {
        p if p.starts_with("/v1/calls") => &theirs.call,
        p if p.starts_with("/v1/containers") => &theirs.container,
        _ => "absent",
    };
    pattern
        .replace("{ns}", "theirs")
        .replace("{fn}", "f")
        .replace("{id}", id)
        .replace("{index}", "0")
        .replace("{path:.*}", "x")
        .replace("{metric}", "wva_desired_replicas")
        .replace("{resource}", "functions")
        .replace("{name}", "f")
}

/// A path with one of its letters spelled otherwise.
fn spelled(path: &str, at: usize, how: usize) -> String {
    let byte = path.as_bytes()[at];
    let (once, upper) = (format!("%{byte:02x}"), format!("%{byte:02X}"));
    let hex = &once[1..];
    let other = match how {
        0 => once,
        1 => upper,
        2 => format!("%25{hex}"),
        3 => format!("%2525{hex}"),
        // Halves that one decoder passes over and the next puts together.
        4 => format!("%%{:02x}{}", hex.as_bytes()[0], &hex[1..]),
        5 => format!("%%{:02x}%{:02x}", hex.as_bytes()[0], hex.as_bytes()[1]),
        6 => format!("{}%00", byte as char),
        7 if byte.is_ascii_lowercase() => (byte as char).to_ascii_uppercase().to_string(),
        _ => format!("{};x=1", byte as char),
    };
    format!("{}{other}{}", &path[..at], &path[at + 1..])
}

/// The same path with more in it.
fn stretched(path: &str, how: usize) -> String {
    match how {
        0 => path.replacen("/v1", "//v1", 1),
        1 => path.replacen("/v1", "/./v1", 1),
        2 => path.replacen("/v1", "/x/../v1", 1),
        3 => path.replacen("/v1", "/healthz/../v1", 1),
        4 => path.replacen("/v1", "/v1/%2e%2e/v1", 1),
        5 => format!("{path}/"),
        6 => format!("{path}/."),
        7 => path.replace('/', "%2f").replacen("%2f", "/", 1),
        8 => format!("{path}?"),
        9 => format!("{path}#healthz"),
        10 => path.replacen("theirs", "mine/../theirs", 1),
        11 => path.replacen("theirs", "mine%2f..%2ftheirs", 1),
        12 => path.replacen("theirs", "theirs%20", 1),
        13 => path.replacen("theirs", "theirs%c0%80", 1),
        14 => path.replacen("theirs", "THEIRS", 1),
        15 => format!("http://mine.example{path}"),
        16 => path.replacen("/f", "/f;", 1),
        _ => format!("/web/mine/x/..{path}"),
    }
}

const STRETCHES: usize = 18;

struct Matrix {
    raw: Raw,
    theirs: Theirs,
    document: Value,
    met: usize,
    wrong: Vec<String>,
}

impl Matrix {
    /// Whether a key opens an operation on what is theirs: what is documented, and nothing that is not.
    fn opens(&self, key: &Key, pattern: &str, method: &str) -> bool {
        let path = if pattern.starts_with("/web/") { "/web/{ns}/{fn}/{path}" } else { pattern };
        let operations = &self.document["paths"][path];
        let method = if method == "HEAD" { "get" } else { &method.to_lowercase() };
        let operation = match operations.get(method) {
            Some(operation) => operation,
            None if path.starts_with("/web/") => &operations["post"],
            None => return false,
        };
        let needed = ROLES.iter().position(|role| operation["x-role"] == *role).expect("a role");
        let there = key.everywhere || operation["x-scope"] == "list";
        there && key.role >= needed
    }

    fn knock(&mut self, key: &Key, pattern: &str, method: &str, path: &str) {
        let bearer = format!("Bearer {}", key.token);
        let body: &[u8] = if matches!(method, "POST" | "PUT" | "PATCH") { b"{\"role\":\"admin\"}" } else { b"" };
        let answer = self.raw.send(method, path, &[("authorization", &bearer)], body);
        self.met += 1;
        // A request that cannot be read at all is closed on.
        let Ok(answer) = answer else { return };
        let refused = matches!(answer.status, 400 | 401 | 403 | 404 | 405 | 414 | 501) || answer.status == 307;
        // A spelling may name another function, one that cannot be.
        let no_name = ["must match [a-z0-9A-Z._-]", "a secret's name has"];
        // A secret of the name `.`, which the list is not.
        let dot = pattern.ends_with("/secrets") && path.ends_with("/.");
        let no_name = dot || no_name.iter().any(|told| answer.body.contains(told));
        let named = answer.status == 422 && (method == "HEAD" || no_name);
        let refused = refused || (named && path != about(pattern, &self.theirs));
        let told = !key.everywhere && (answer.body.contains(SECRET) || answer.body.contains("\"theirs\""));
        if !refused || told {
            let whose = if key.everywhere { "everywhere" } else { "of mine" };
            self.wrong.push(format!(
                "{} {whose}: {method} {path} ({pattern}): {} {}",
                ROLES[key.role], answer.status, answer.body
            ));
        }
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_let_in_by_no_spelling() {
    // RELIABILITY §4.3 API1 API2 API5: object, function and property level, by every door.
    let many = |name: &str| format!("scheduler.{name}=1000000");
    let tokens = format!("scheduler.tokens={ROOT}");
    let (_folder, up) = fresh(&["--set", &tokens, "--set", &many("rate_per_s"), "--set", &many("rate_burst")]);
    let (keys, theirs) = prepare(&up).await;
    let document = root(&up, "GET", "/openapi.json", Value::Null).await.1;
    let patterns = capstan_scheduler::rest::patterns();
    assert!(patterns.len() > 45, "{patterns:?}");
    let before = state(&up).await;
    let (raw, mut random) = (Raw::to(&up.url), StdRng::seed_from_u64(13));
    let mut matrix = Matrix { raw, theirs, document, met: 0, wrong: Vec::new() };
    for pattern in patterns {
        if matches!(pattern, "/healthz" | "/readyz" | "/openapi.json" | "/") {
            continue;
        }
        let path = about(pattern, &matrix.theirs);
        for method in METHODS {
            for key in &keys {
                if matrix.opens(key, pattern, method) {
                    continue;
                }
                matrix.knock(key, pattern, method, &path);
                for _ in 0..3 {
                    let other = stretched(&path, random.random_range(0..STRETCHES));
                    matrix.knock(key, pattern, method, &other);
                    let other = spelled(&path, random.random_range(1..path.len()), random.random_range(0..9));
                    matrix.knock(key, pattern, method, &other);
                }
            }
        }
        // The narrowest key, with each letter of the path in turn.
        let narrow = keys.iter().find(|key| key.role == 0 && !key.everywhere).unwrap();
        let shut = |method: &&str| !matrix.opens(narrow, pattern, method);
        for method in ["GET", "POST", "PUT"].into_iter().filter(shut).collect::<Vec<_>>() {
            for at in 1..path.len() {
                matrix.knock(narrow, pattern, method, &spelled(&path, at, at % 6));
            }
        }
    }
    assert!(matrix.wrong.is_empty(), "{} of {}:\n{}", matrix.wrong.len(), matrix.met, matrix.wrong.join("\n"));
    assert!(matrix.met >= 20_000, "{} cases", matrix.met);
    assert_eq!(state(&up).await, before, "somebody changed something");
}

/// What nobody but the operator may have changed.
async fn state(up: &Up) -> BTreeMap<&'static str, Value> {
    let mut state = BTreeMap::new();
    for path in ["/v1/tokens", "/v1/namespaces/theirs/functions", "/v1/scale-to-zero", "/v1/namespaces/theirs"] {
        let (status, mut answer) = root(up, "GET", path, Value::Null).await;
        assert_eq!(status, 200);
        // How many containers run just now is nobody's doing.
        if let Some(used) = answer.get_mut("used") {
            *used = Value::Null;
        }
        if let Some(functions) = answer["functions"].as_array_mut() {
            functions.iter_mut().for_each(|function| function["stats"] = Value::Null);
        }
        state.insert(path, answer);
    }
    state
}

#[tokio::test]
async fn others_things_look_like_things_that_do_not_exist() {
    let tokens = format!("scheduler.tokens={ROOT}");
    let (_folder, up) = fresh(&["--set", &tokens]);
    let (keys, theirs) = prepare(&up).await;
    let admin = keys.iter().find(|key| key.role == 3 && !key.everywhere).unwrap();
    let mut raw = Raw::to(&up.url);
    let bearer = format!("Bearer {}", admin.token);
    let mut ask = |path: &str, id: &str| {
        let answer = raw.send("GET", &path.replace("{id}", id), &[("authorization", &bearer)], b"").unwrap();
        (answer.status, answer.body.replace(id, "{id}"))
    };
    // As old as the call that is there: what is older than any result would be told to have expired.
    let absent_call = format!("{}0000", &theirs.call[..theirs.call.len() - 4]);
    let absent_container = "ct-00000100000000ff";
    for path in ["/v1/calls/{id}", "/v1/calls/{id}/results", "/v1/calls/{id}/inputs/0/explain"] {
        assert_eq!(ask(path, &theirs.call), ask(path, &absent_call), "{path}");
    }
    assert_eq!(ask("/v1/containers/{id}/logs", &theirs.container), ask("/v1/containers/{id}/logs", absent_container));
    // Where a token holds is said, whether or not there is such a namespace.
    let (_, named) = ask("/v1/namespaces/{id}/functions/f", "theirs");
    assert!(named.contains("it holds in `mine`"), "{named}");
    assert_eq!(named, ask("/v1/namespaces/{id}/functions/f", "nobodys").1);
}

#[tokio::test]
async fn an_open_door_serves_no_other_page() {
    let (_folder, up) = fresh(&[]);
    let mut raw = Raw::to(&up.url);
    let host = up.url.trim_start_matches("http://").to_owned();
    let port = host.rsplit(':').next().unwrap().to_owned();
    let own = format!("http://{host}");
    let other_port = "http://127.0.0.1:1".to_owned();
    let by_name = format!("http://localhost:{port}");
    for (name, value, served) in [
        ("origin", own.as_str(), true),
        ("origin", other_port.as_str(), false),
        ("origin", by_name.as_str(), false),
        ("origin", "null", false),
        ("origin", "http://evil.example", false),
        ("sec-fetch-site", "same-origin", true),
        ("sec-fetch-site", "none", true),
        ("sec-fetch-site", "cross-site", false),
        ("sec-fetch-site", "same-site", false),
    ] {
        let answer = raw.send("GET", "/v1/calls", &[(name, value)], b"").unwrap();
        assert_eq!(answer.status == 200, served, "{name}: {value}: {}", answer.body);
        let posted = raw.send("POST", "/v1/tokens", &[(name, value)], b"{\"role\":\"king\"}").unwrap();
        assert_eq!(posted.status == 422, served, "{name}: {value}");
    }
    let foreign = raw.shout(b"GET /v1/calls HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").unwrap();
    assert!(foreign.starts_with(b"HTTP/1.1 403"), "{}", String::from_utf8_lossy(&foreign));
}
