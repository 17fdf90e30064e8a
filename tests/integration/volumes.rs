//! Volumes: seen where a function says, by its processes alone, and kept.

use crate::fresh;
use capstan_tests::real::{Up, spec};
use serde_json::{Value, json};
use std::path::Path;

/// A function of one shell command that sees volumes.
fn shell(script: &str, protocol: &str, volumes: Value) -> Value {
    spec(&["sh", "-c", script], protocol, json!({"volumes": volumes}))
}

#[tokio::test]
async fn a_model_server_with_a_volume_a_gpu_and_a_short_window_is_accepted_as_the_guide_writes_it() {
    // SPEC B22 N01
    let (_folder, up) = fresh(&[]);
    let more = json!({
        "volumes": {"/usr/share/ollama/.ollama/models": "ollama"},
        "resources": {"gpu": "H100"},
        "autoscaler": {"scaledown_window": 10},
    });
    let deployed = up.deploy("ollama", spec(&["ollama", "serve"], "http", more)).await.unwrap();
    let spec = &deployed["spec"];
    assert_eq!(spec["volumes"], json!({"/usr/share/ollama/.ollama/models": "ollama"}));
    assert_eq!((&spec["resources"]["gpu"], &spec["autoscaler"]["scaledown_window"]), (&json!(["H100"]), &json!(10)));
}

#[tokio::test]
async fn what_a_function_writes_into_a_volume_is_there_for_others_of_its_namespace_and_after_a_kill() {
    // SPEC B22
    let (folder, mut up) = fresh(&[]);
    let (at, inner) = (folder.path().join("at/models"), folder.path().join("at/models/inner"));
    let (at, inner) = (at.to_str().unwrap(), inner.to_str().unwrap());
    // One volume inside the other, and a path that was not there.
    let writes = shell(&format!("cat > {at}/weights; echo deep > {inner}/file"), "exec", json!({at: "a", inner: "b"}));
    up.deploy("writes", writes).await.unwrap();
    assert_eq!(up.invoke("writes", json!([1, 2])).await.unwrap(), (200, json!("")));
    assert!(!Path::new(at).join("weights").exists(), "it is seen outside");
    up.kill().unwrap();
    let up = Up::start(&folder.path().join("data"), &[]).unwrap();
    // A program and a working folder that are in the volume alone.
    let there = folder.path().join("there");
    let (program, there) = (there.join("inner/show"), there.to_str().unwrap());
    let made = shell(
        &format!(
            "mkdir -p {there}/inner; printf '#!/bin/sh\\ncat weights' > {there}/inner/show; chmod +x {there}/inner/show"
        ),
        "exec",
        json!({there: "a"}),
    );
    up.deploy("made", made).await.unwrap();
    assert_eq!(up.invoke("made", json!(null)).await.unwrap().0, 200);
    let reads = json!({
        "runtime": {"process": {"command": [program], "working_dir": there}}, "protocol": "exec", "volumes": {there: "a"},
    });
    up.deploy("reads", reads.clone()).await.unwrap();
    assert_eq!(up.invoke("reads", json!(null)).await.unwrap(), (200, json!([1, 2])));
    // Another namespace's volume of the name is another.
    let url = format!("{}/v1/namespaces/other/functions/lists", up.url);
    up.http
        .put(&url)
        .json(&shell(&format!("ls -A {there} | wc -l"), "exec", json!({there: "a"})))
        .send()
        .await
        .unwrap();
    let counted = up.http.post(format!("{url}/invoke")).json(&json!(null)).send().await.unwrap();
    assert_eq!(counted.json::<Value>().await.unwrap(), json!(0));
}

#[tokio::test]
async fn a_volume_of_an_earlier_version_is_given_to_its_namespaces_user_and_what_links_lead_to_is_not() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let (folder, up) = fresh(&[]);
    let (kept, outside) = (folder.path().join("data/volumes/default/old"), folder.path().join("outside"));
    std::fs::create_dir_all(kept.join("deep")).unwrap();
    for file in [kept.join("a"), kept.join("deep/b"), outside.clone()] {
        std::fs::write(file, "old").unwrap();
    }
    symlink(&outside, kept.join("deep/link")).unwrap();
    let at = folder.path().join("at");
    let at = at.to_str().unwrap();
    up.deploy("f", shell(&format!("echo new >> {at}/a; echo new >> {at}/deep/b"), "exec", json!({at: "old"})))
        .await
        .unwrap();
    assert_eq!(up.invoke("f", json!(null)).await.unwrap().0, 200);
    assert_eq!(std::fs::read_to_string(kept.join("deep/b")).unwrap(), "oldnew\n");
    let user = kept.metadata().unwrap().uid();
    assert!(user >= 1 << 30 && kept.join("deep/b").metadata().unwrap().uid() == user, "{user}");
    assert_eq!(outside.metadata().unwrap().uid(), 0);
}

#[tokio::test]
async fn what_a_function_lays_into_its_volume_leads_nobody_astray() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, up) = fresh(&[]);
    let private = folder.path().join("private");
    std::fs::write(&private, "of the operator").unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (etc, outside) = (private.display(), folder.path().join("outside"));
    std::fs::create_dir(&outside).unwrap();
    // The system's list of users, as a link to what only the superuser may read; and a folder for another volume, as a link out.
    let lays = format!("ln -sf {etc} /v/passwd; ln -sf {} /v/out", outside.display());
    up.deploy("lays", shell(&lays, "exec", json!({"/v": "v"}))).await.unwrap();
    assert_eq!(up.invoke("lays", json!(null)).await.unwrap().0, 200);
    let reads = shell(&format!("cat /etc/passwd {etc} 2>/dev/null; true"), "exec", json!({"/etc": "v"}));
    up.deploy("reads", reads).await.unwrap();
    let (_, read) = up.invoke("reads", json!(null)).await.unwrap();
    assert!(!read.to_string().contains("of the operator"), "{read}");
    up.deploy("leads", shell("true", "exec", json!({"/v": "v", "/v/out/made": "w"}))).await.unwrap();
    let (status, problem) = up.invoke("leads", json!(null)).await.unwrap();
    assert!(status == 502 && problem.to_string().contains("no folder to be mounted on"), "{problem}");
    assert!(!outside.join("made").exists());
}

#[tokio::test]
async fn a_server_sees_its_volume_and_one_without_a_place_for_it_says_so() {
    let (folder, up) = fresh(&[]);
    let at = folder.path().join("served");
    let script = format!(
        "cd {0} && echo kept > index.html && exec python3 -m http.server -b 127.0.0.1 $PORT 2>/dev/null",
        at.display()
    );
    let server = spec(&["sh", "-c", &script], "http", json!({"volumes": {at.to_str().unwrap(): "site"}}));
    up.deploy("server", server).await.unwrap();
    let page = up.http.get(format!("{}/web/default/server/index.html", up.url)).send().await.unwrap();
    assert_eq!(page.text().await.unwrap(), "kept\n");
    assert!(!at.join("index.html").exists());
    // A file is no place for a folder.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let server = spec(&["sleep", "60"], "http", json!({"volumes": {file.to_str().unwrap(): "site"}}));
    up.deploy("nowhere", server).await.unwrap();
    let (status, problem) = up.invoke("nowhere", json!(null)).await.unwrap();
    assert_eq!(status, 502, "{problem}");
    assert!(problem.to_string().contains("has no folder to be mounted on"), "{problem}");
}

#[tokio::test]
async fn wrong_volumes_are_refused_by_field() {
    // SPEC B22, and section 2.1: the same volume at two paths
    let (_folder, up) = fresh(&[]);
    for (volumes, pointer, what) in [
        (json!({"/a": "v", "/b": "v"}), "/volumes/~1b", "already at `/a`"),
        (json!({"models": "v"}), "/volumes/models", "absolute"),
        (json!({"/sys/x": "v"}), "/volumes/~1sys~1x", "kernel"),
        (json!({"/a": "../v"}), "/volumes/~1a", "must match"),
        (json!({"/a": 7}), "/volumes/~1a", "string"),
    ] {
        let refused =
            up.http.put(up.function("f", "")).json(&shell("true", "exec", volumes.clone())).send().await.unwrap();
        assert_eq!(refused.status(), 422, "{volumes}");
        let problem: Value = refused.json().await.unwrap();
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
        assert!(problem["errors"][0]["detail"].as_str().unwrap().contains(what), "{problem}");
    }
}
