//! Secrets, and who sees what of a function's environment.

use crate::fresh;
use capstan_tests::real::{Up, binary, spec};
use serde_json::{Value, json};

/// A token of some namespaces, made by the admin's.
async fn token(up: &Up, admin: &str, role: &str, namespaces: Value) -> String {
    let wanted = json!({"role": role, "namespaces": namespaces});
    let made = up.http.post(up.at("/v1/tokens")).bearer_auth(admin).json(&wanted).send().await.unwrap();
    made.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_secrets_variables_are_in_the_environment_and_nowhere_else() {
    let (folder, mut up) = fresh(&[]);
    let capstan = |url: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(binary("capstan").unwrap());
        let output = command.args(["--url", url]).args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let file = folder.path().join("password");
    std::fs::write(&file, "open sesame\n").unwrap();
    let password = format!("PASSWORD=@{}", file.display());
    assert_eq!(capstan(&up.url, &["secret", "set", "db", "DB_USER=app", &password]), (Some(0), "set db\n".into()));
    let (_, listed) = capstan(&up.url, &["secret", "list", "--json"]);
    assert!(listed.contains("PASSWORD") && !listed.contains("sesame"), "{listed}");
    let shows = spec(
        &["sh", "-c", "echo \"$DB_USER $PASSWORD\""],
        "exec",
        json!({"secrets": ["db"], "runtime": {"process": {"command": ["sh", "-c", "echo \"$DB_USER $PASSWORD\""], "env": {"DB_USER": "mine"}}}}),
    );
    up.deploy("f", shows).await.unwrap();
    // What the spec says wins.
    assert_eq!(up.invoke("f", json!(null)).await.unwrap(), (200, json!("mine open sesame")));
    let (code, said) = capstan(&up.url, &["secret", "remove", "db"]);
    assert!(code != Some(0) && said.contains("in use by f"), "{said}");
    // After a kill it is there, and in no answer.
    up.kill().unwrap();
    let up = Up::start(&folder.path().join("data"), &[]).unwrap();
    assert_eq!(up.invoke("f", json!(null)).await.unwrap(), (200, json!("mine open sesame")));
    let function = up.get("/v1/namespaces/default/functions/f").await.unwrap();
    assert!(!function.to_string().contains("sesame"), "{function}");
    let unknown = up.http.put(up.function("g", "")).json(&spec(&["true"], "exec", json!({"secrets": ["none"]})));
    let refused = unknown.send().await.unwrap();
    assert_eq!(refused.status(), 422);
    assert_eq!(refused.json::<Value>().await.unwrap()["errors"][0]["pointer"], "/secrets/0");
    for (values, pointer) in
        [(json!({"1X": "a"}), "/values/1X"), (json!({}), "/values"), (json!({"X": 7}), "/values/X")]
    {
        let put = up.http.put(up.at("/v1/namespaces/default/secrets/s")).json(&json!({"values": values})).send();
        let refused = put.await.unwrap();
        assert_eq!(refused.status(), 422, "{values}");
        assert_eq!(refused.json::<Value>().await.unwrap()["errors"][0]["pointer"], pointer);
    }
}

#[tokio::test]
async fn environments_and_secrets_are_hidden_from_whoever_may_not_deploy() {
    let (_folder, up) = fresh(&["--set", "scheduler.tokens=admin-token-of-the-test"]);
    let url = up.function("f", "");
    let env = json!({"process": {"command": ["env"], "env": {"KEY": "hush"}}});
    let body = json!({"runtime": env, "protocol": "exec"});
    let deploy = token(&up, "admin-token-of-the-test", "deploy", json!(["default"])).await;
    let deployed = up.http.put(&url).bearer_auth(&deploy).json(&body).send().await.unwrap();
    assert_eq!(deployed.status(), 201);
    for (role, seen) in [("read", false), ("invoke", false), ("deploy", true)] {
        let bearer = token(&up, "admin-token-of-the-test", role, json!(["default"])).await;
        for path in ["/v1/namespaces/default/functions/f", "/v1/namespaces/default/functions"] {
            let shown = up.http.get(up.at(path)).bearer_auth(&bearer).send().await.unwrap().text().await.unwrap();
            assert_eq!(shown.contains("hush"), seen, "{role} {path}: {shown}");
            assert_eq!(shown.contains("***"), !seen, "{role} {path}: {shown}");
        }
    }
}

#[tokio::test]
async fn trusted_functions_are_for_admins_and_namespace_tokens_deploy_what_is_confined() {
    let (_folder, up) = fresh(&["--set", "scheduler.tokens=admin-token-of-the-test"]);
    let put = async |bearer: &str, trusted: bool| {
        let body = spec(&["id", "-u"], "exec", json!({"trusted": trusted}));
        let answer = up.http.put(up.function("f", "")).bearer_auth(bearer).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let uid = async |bearer: &str| {
        let asked = up.http.post(up.function("f", "/invoke")).bearer_auth(bearer).json(&json!(1)).send().await.unwrap();
        asked.json::<Value>().await.unwrap()
    };
    let narrow = token(&up, "admin-token-of-the-test", "deploy", json!(["default"])).await;
    let wide = token(&up, "admin-token-of-the-test", "deploy", json!(null)).await;
    for bearer in [&narrow, &wide] {
        let (status, problem) = put(bearer, true).await;
        assert!(status == 403 && problem["detail"].as_str().unwrap().contains("/trusted"), "{problem}");
    }
    let (status, deployed) = put(&narrow, false).await;
    assert_eq!((status, &deployed["spec"]["confined"]), (201, &json!(true)));
    let own = rustix::process::getuid().as_raw();
    assert_ne!(uid(&narrow).await, json!(own));
    let (status, deployed) = put("admin-token-of-the-test", true).await;
    assert_eq!((status, &deployed["spec"]["trusted"]), (200, &json!(true)));
    assert_eq!(uid("admin-token-of-the-test").await, json!(own));
    let listed = up.http.get(up.at("/v1/containers")).bearer_auth("admin-token-of-the-test").send().await.unwrap();
    let containers = listed.json::<Value>().await.unwrap();
    let trusted = containers["containers"].as_array().unwrap().iter().filter(|c| c["trusted"] == true).count();
    assert!(trusted > 0, "{containers}");
}

#[tokio::test]
async fn a_functions_page_is_no_page_of_the_apis_and_may_have_an_origin_of_its_own() {
    let (folder, up) = fresh(&["--set", "scheduler.web_listen=127.0.0.1:0"]);
    // The log says where, a moment after the first door is open.
    let own = loop {
        let log = std::fs::read_to_string(folder.path().join("data.2.log")).unwrap();
        let doors = log.split("actix-web-service-").skip(1).filter_map(|text| text.split(['"', '\\']).next());
        if let Some(own) = doors.map(|at| format!("http://{at}")).find(|url| *url != up.url) {
            break own;
        }
        tokio::task::yield_now().await;
    };
    let server = "exec python3 -m http.server -b 127.0.0.1 $PORT 2>/dev/null";
    up.deploy("site", spec(&["sh", "-c", server], "http", json!({}))).await.unwrap();
    let page = up.http.get(up.at("/web/default/site/")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(
        page.status() == 200 && policy.starts_with("sandbox ") && !policy.contains("allow-same-origin"),
        "{policy}"
    );
    // What such a page asks has no origin, and is nobody's own.
    let asked = up.http.get(up.at("/v1/tokens")).header("origin", "null").send().await.unwrap();
    assert_eq!(asked.status(), 403);
    let page = up.http.get(format!("{own}/web/default/site/")).send().await.unwrap();
    assert!(page.status() == 200 && !page.headers().contains_key("content-security-policy"));
    for path in ["/v1/tokens", "/", "/docs", "/metrics", "/openapi.json"] {
        assert_eq!(up.http.get(format!("{own}{path}")).send().await.unwrap().status(), 404, "{path}");
    }
}

#[tokio::test]
async fn what_a_functions_user_cannot_reach_is_refused_when_it_is_deployed() {
    use std::os::unix::fs::PermissionsExt;
    // Also of what is deployed before the worker has joined.
    let (folder, up) = fresh(&[]);
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::write(closed.join("handler.py"), "print(1)").unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let handler = closed.join("handler.py").display().to_string();
    let body = spec(&["python3", &handler], "exec", json!({}));
    let refused = up.http.put(up.function("f", "")).json(&body).send().await.unwrap();
    assert_eq!(refused.status(), 422);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(
        (&problem["code"], &problem["errors"][0]["pointer"]),
        (&json!("unreachable"), &json!("/runtime/process/command/1"))
    );
    assert!(problem["detail"].as_str().unwrap().contains(&format!("chmod o+x {}", closed.display())), "{problem}");
    let trusted = spec(&["python3", &handler], "exec", json!({"trusted": true}));
    up.deploy("f", trusted).await.unwrap();
    assert_eq!(up.invoke("f", json!(null)).await.unwrap(), (200, json!(1)));
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();
    up.deploy("f", body).await.unwrap();
    assert_eq!(up.invoke("f", json!(null)).await.unwrap(), (200, json!(1)));
}
