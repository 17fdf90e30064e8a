//! Who may do what: every operation of the interface, for every role, at home and abroad.

use crate::fresh;
use capstan_tests::real::{Up, spec};
use capstan_verb::RIGHTS;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ROOT: &str = "root-token-of-the-operator";
const ROLES: [&str; 4] = ["read", "invoke", "deploy", "admin"];

async fn send(up: &Up, method: &str, path: &str, token: &str, body: Option<Value>) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = up.http.request(method, up.at(path)).header("authorization", format!("Bearer {token}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    if answer.headers().get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream")) {
        return (status, Value::Null);
    }
    (status, answer.json().await.unwrap_or_default())
}

async fn make(up: &Up, role: &str, namespaces: Value) -> String {
    let (status, made) =
        send(up, "POST", "/v1/tokens", ROOT, Some(json!({"role": role, "namespaces": namespaces}))).await;
    assert_eq!(status, 201, "{made}");
    made["token"].as_str().unwrap().to_owned()
}

/// What the interface should say, from its role and scope: a refusal, or anything else.
fn refused(role: usize, needed: usize, (scope, path): (&str, &str), place: &str) -> Option<u16> {
    let here = place != "everywhere";
    match scope {
        "namespace" if place == "theirs" => Some(404),
        "cluster" if here => Some(403),
        // The role needs no look at what is asked for, and comes first.
        _ if role < needed => Some(403),
        // The container asked for is absent: for those who see some namespaces it is as hidden as others'.
        "record" if path.starts_with("/v1/calls") && place == "theirs" => Some(404),
        "record" if path.starts_with("/v1/containers") && here => Some(404),
        _ => None,
    }
}

#[tokio::test]
async fn every_role_meets_every_operation_in_its_own_and_in_others_namespaces() {
    // SPEC X01, RELIABILITY §4.3 API1 API2 API5
    let (_folder, up) = fresh(&[
        "--set",
        &format!("scheduler.tokens={ROOT}"),
        "--set",
        "scheduler.rate_per_s=100000",
        "--set",
        "scheduler.rate_burst=100000",
    ]);
    let echo = spec(&["cat"], "exec", json!({}));
    let mut calls = BTreeMap::new();
    for ns in ["mine", "theirs"] {
        let path = format!("/v1/namespaces/{ns}/functions/f");
        assert_eq!(send(&up, "PUT", &path, ROOT, Some(echo.clone())).await.0, 201);
        let (_, spawned) = send(&up, "POST", &format!("{path}/spawn"), ROOT, Some(json!(1))).await;
        calls.insert(ns, spawned["call_id"].as_str().unwrap().to_owned());
    }
    let document: Value = up
        .http
        .get(up.at("/openapi.json"))
        .header("authorization", format!("Bearer {ROOT}"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let mut tokens = BTreeMap::new();
    for role in ROLES {
        tokens.insert((role, "everywhere"), make(&up, role, Value::Null).await);
        tokens.insert((role, "here"), make(&up, role, json!(["mine"])).await);
    }
    let mut met = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap().iter().filter(|(m, _)| *m != "parameters") {
            if matches!(&**path, "/healthz" | "/readyz" | "/docs" | "/v1/events") {
                continue;
            }
            let scope = operation["x-scope"].as_str().unwrap_or_else(|| panic!("{method} {path} has no scope"));
            let needed = ROLES.iter().position(|role| operation["x-role"] == *role).expect("a role");
            for (place, ns) in [("everywhere", "mine"), ("mine", "mine"), ("theirs", "theirs")] {
                // A function of each role's own, so that what is removed is not missed by the next.
                let path =
                    path.replace("{ns}", ns).replace("{fn}", "absent").replace("{index}", "0").replace("{path}", "x");
                let id = if path.starts_with("/v1/calls") { calls[ns].clone() } else { "absent".into() };
                let path = path.replace("{id}", &id);
                for (held, role) in ROLES.into_iter().enumerate() {
                    let whose = if place == "everywhere" { "everywhere" } else { "here" };
                    // A wrong body: whoever is let in is refused for that, and nothing is changed.
                    let body = (method != "get" && method != "delete").then(|| json!({"nonsense": true}));
                    let (status, answer) =
                        send(&up, &method.to_uppercase(), &path, &tokens[&(role, whose)], body).await;
                    let expected = refused(held, needed, (scope, &path), place);
                    let what = format!("{role} {place} {method} {path}: {status} {answer}");
                    match expected {
                        Some(expected) => assert_eq!(status, expected, "{what}"),
                        None => assert!(!matches!(status, 401 | 403), "{what}"),
                    }
                    met += 1;
                }
                for nobody in ["", "cap_wrong", &tokens[&("admin", "everywhere")][1..]] {
                    assert_eq!(send(&up, &method.to_uppercase(), &path, nobody, None).await.0, 401, "{method} {path}");
                }
            }
        }
    }
    assert!(met > 300, "{met} cases");
}

#[tokio::test]
async fn nobody_locks_everybody_out() {
    let (_folder, up) = fresh(&[]);
    let (status, refused) = send(&up, "POST", "/v1/tokens", "", Some(json!({"role": "deploy"}))).await;
    assert!(status == 422 && refused.to_string().contains("must be admin, everywhere"), "{refused}");
    assert_eq!(send(&up, "GET", "/v1/calls", "", None).await.0, 200, "the door is as open as before");
    let (_, admin) = send(&up, "POST", "/v1/tokens", "", Some(json!({"role": "admin"}))).await;
    let text = admin["token"].as_str().unwrap();
    assert_eq!(send(&up, "GET", "/v1/calls", "", None).await.0, 401);
    assert_eq!(send(&up, "POST", "/v1/tokens", text, Some(json!({"role": "read"}))).await.0, 201);
    let path = format!("/v1/tokens/{}", admin["id"].as_str().unwrap());
    assert_eq!(send(&up, "DELETE", &path, text, None).await.0, 409, "the last one that may govern");
}

#[tokio::test]
async fn lists_show_a_token_its_own_and_a_revoked_token_opens_nothing() {
    let (folder, mut up) = fresh(&["--set", &format!("scheduler.tokens={ROOT}")]);
    let echo = spec(&["cat"], "exec", json!({}));
    for ns in ["mine", "theirs"] {
        let path = format!("/v1/namespaces/{ns}/functions/f");
        assert_eq!(send(&up, "PUT", &path, ROOT, Some(echo.clone())).await.0, 201);
        assert_eq!(send(&up, "POST", &format!("{path}/invoke"), ROOT, Some(json!(1))).await.0, 200);
    }
    let (_, made) =
        send(&up, "POST", "/v1/tokens", ROOT, Some(json!({"role": "invoke", "namespaces": ["mine"], "name": "ci"})))
            .await;
    let token = made["token"].as_str().unwrap().to_owned();
    for (path, field, of) in [
        ("/v1/calls", "calls", "namespace"),
        ("/v1/containers", "containers", "namespace"),
        ("/v1/namespaces", "namespaces", "name"),
    ] {
        let (status, listed) = send(&up, "GET", path, &token, None).await;
        let listed = listed[field].as_array().unwrap();
        assert_eq!(status, 200);
        assert!(!listed.is_empty() && listed.iter().all(|item| item[of] == "mine"), "{path}: {listed:?}");
    }
    // It survives a crash, as what it is and no more: its text lies nowhere.
    up.kill().unwrap();
    let up = Up::start(&folder.path().join("data"), &["--set", &format!("scheduler.tokens={ROOT}")]).unwrap();
    assert_eq!(send(&up, "POST", "/v1/namespaces/mine/functions/f/invoke", &token, Some(json!(2))).await.0, 200);
    for file in std::fs::read_dir(folder.path().join("data/log")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()), "the token is stored as it is");
    }
    let (_, listed) = send(&up, "GET", "/v1/tokens", ROOT, None).await;
    assert!(listed["tokens"][0]["name"] == "ci" && listed["tokens"][0].get("token").is_none());
    let id = made["id"].as_str().unwrap();
    assert_eq!(send(&up, "DELETE", &format!("/v1/tokens/{id}"), ROOT, None).await.0, 204);
    assert_eq!(send(&up, "GET", "/v1/calls", &token, None).await.0, 401);
    assert_eq!(send(&up, "DELETE", &format!("/v1/tokens/{id}"), ROOT, None).await.0, 404);
    for (wrong, field) in [
        (json!({"role": "king"}), "role"),
        (json!({"role": "read", "namespaces": []}), "namespaces"),
        (json!({"role": "read", "namespaces": ["a/b"]}), "namespaces"),
        (json!({"role": "read", "more": 1}), "more"),
    ] {
        let (status, answer) = send(&up, "POST", "/v1/tokens", ROOT, Some(wrong)).await;
        assert!(status == 422 && answer.to_string().contains(field), "{answer}");
    }
}

#[tokio::test]
async fn tokens_of_a_file_open_the_door_and_a_file_that_all_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, "# of the operator\nfirst-token-of-the-file\nsecond-token-of-the-file\n").unwrap();
    let start = |mode: u32| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let setting = format!("scheduler.tokens_file={}", file.display());
        Up::start(&folder.path().join("data"), &["--set", &setting])
    };
    let refused = start(0o604).err().map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(refused.contains("chmod 600"), "{refused}");
    let up = start(0o600).unwrap();
    for (token, status) in
        [("first-token-of-the-file", 200), ("second-token-of-the-file", 200), ("# of the operator", 401), ("", 401)]
    {
        let asked = up.http.get(up.at("/v1/tokens")).bearer_auth(token).send().await.unwrap();
        assert_eq!(asked.status(), status, "{token}");
    }
}

/// Asks a verb by its name, with an input behind it.
async fn bring(up: &Up, verb: &str, token: &str, about: &Value, input: &[u8]) -> (u16, Value) {
    let json = about.to_string().into_bytes();
    let request = up.http.post(up.at(&format!("/peer/{verb}"))).bearer_auth(token);
    let request = request.header("capstan-verb-length", json.len()).body([&json[..], input].concat());
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

#[tokio::test]
async fn every_verb_is_asked_by_its_name_by_every_role_and_by_nobody() {
    // DESIGN law 13, RELIABILITY §4.3 API1 API2 API5: the way on which schedulers ask each other is open to nobody else's rights.
    let tokens = format!("scheduler.tokens={ROOT}");
    let many = ["--set", "scheduler.rate_per_s=100000", "--set", "scheduler.rate_burst=100000"];
    let (_folder, up) = fresh(&[&["--set", &tokens], &many[..]].concat());
    let path = "/v1/namespaces/theirs/functions/f";
    assert_eq!(send(&up, "PUT", path, ROOT, Some(spec(&["cat"], "exec", json!({})))).await.0, 201);
    let (_, spawned) = send(&up, "POST", &format!("{path}/spawn"), ROOT, Some(json!(1))).await;
    // All that any verb names, so that one body is a question to each.
    let about = json!({
        "key": {"namespace": "theirs", "name": "f"}, "namespace": "theirs", "call": spawned["call_id"], "index": 0,
        "container": "ct-0000010000000001", "name": "nothing", "limit": 10, "query": "wva_desired_replicas",
        "spec": spec(&["cat"], "exec", json!({})), "patch": {}, "before": {"one_of": []}, "paused": true, "weight": 0, "quota": {},
        "data": {}, "model_id": "m", "id": "nothing", "values": {}, "wait_ms": 0, "ordered": true, "input": "json", "revision": 1,
    });
    let mut refused = 0;
    for rights in RIGHTS {
        // What is asked in earnest changes nothing.
        let mut about = about.clone();
        match rights.verb {
            "token.Make" => about = json!({"role": "read", "namespaces": []}),
            "cluster.TurnWorker" => about["state"] = "unreachable".into(),
            _ => {}
        }
        let path = format!("/peer/{}", rights.verb);
        for nobody in ["", "cap_wrong"] {
            assert_eq!(send(&up, "POST", &path, nobody, Some(about.clone())).await.0, 401, "{path}");
        }
        assert_eq!(send(&up, "GET", &path, ROOT, None).await.0, 405, "{path}");
        for (held, role) in ROLES.into_iter().enumerate() {
            let needed = ROLES.iter().position(|role| *role == rights.role.name()).unwrap();
            for everywhere in [true, false] {
                let token = make(&up, role, if everywhere { Value::Null } else { json!(["mine"]) }).await;
                let brings = matches!(rights.verb, "call.Invoke" | "call.Spawn");
                let (status, said) = if brings {
                    bring(&up, rights.verb, &token, &about, b"[1]").await
                } else {
                    send(&up, "POST", &path, &token, Some(about.clone())).await
                };
                assert_eq!(status, 200, "{path}");
                let what = format!("{} {role} {everywhere}: {said}", rights.verb);
                let code = said["refusal"]["code"].as_str();
                match rights.scope {
                    "In" if !everywhere => assert_eq!(code, Some("not_found"), "{what}"),
                    "Cluster" if !everywhere => assert_eq!(code, Some("forbidden"), "{what}"),
                    _ if held < needed => assert_eq!(code, Some("forbidden"), "{what}"),
                    // Hidden in the words of what is absent.
                    "OfRecord" if !everywhere => assert_eq!(code, Some("not_found"), "{what}"),
                    "List" if !everywhere => assert!(!said.to_string().contains("theirs"), "{what}"),
                    _ => assert!(!matches!(code, Some("forbidden" | "unauthenticated" | "malformed")), "{what}"),
                }
                refused += usize::from(code.is_some());
            }
        }
    }
    assert!(refused > RIGHTS.len(), "{refused}");
    // What a door would have looked at is looked at here too: sizes, and names.
    let large = json!({"data": {"a": "x".repeat(1 << 20)}});
    assert_eq!(send(&up, "POST", "/peer/model.SetScaleToZero", ROOT, Some(large)).await.0, 413);
    for (format, input, code) in [
        ("json", &b"1\n{\"index\":7}"[..], "malformed"),
        ("json", b"", "malformed"),
        ("pickle", b"\x80\x04.", "unsupported"),
        ("unheard", b"1", "malformed"),
    ] {
        let mut brought = about.clone();
        brought["input"] = format.into();
        let (_, said) = bring(&up, "call.Spawn", ROOT, &brought, input).await;
        assert_eq!(said["refusal"]["code"], code, "{format}: {said}");
    }
    let mut long = about.clone();
    long["terms"] = json!({"key": "k".repeat(256)});
    assert_eq!(bring(&up, "call.Spawn", ROOT, &long, b"1").await.1["refusal"]["code"], "malformed");
    let (_, said) = bring(&up, "call.Get", ROOT, &about, b"1").await;
    assert_eq!(said["refusal"]["code"], "malformed", "bytes for a verb that has no place for them: {said}");
    assert_eq!(bring(&up, "call.Spawn", ROOT, &about, &vec![b'1'; 17 << 20]).await.0, 413);
    for name in ["a/b", "a\u{0}b", "..", "f;x=1"] {
        let odd = json!({"key": {"namespace": "mine", "name": name}, "spec": spec(&["cat"], "exec", json!({}))});
        let (_, said) = send(&up, "POST", "/peer/function.Deploy", ROOT, Some(odd)).await;
        assert_eq!(said["refusal"]["code"], "malformed", "{name:?}: {said}");
    }
    let (_, unknown) = send(&up, "POST", "/peer/function.Unheard", ROOT, Some(about)).await;
    let (_, there) = send(&up, "GET", path, ROOT, None).await;
    assert_eq!(there["revision"], 1, "somebody deployed: {there}");
    assert_eq!(unknown["refusal"]["code"], "unavailable", "a newer scheduler's question");
}
