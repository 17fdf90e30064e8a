//! REST, encrypted: by the cluster's own authority or the operator's certificate, and between schedulers.

use capstan::{client, local::Size};
use capstan_tests::{
    cluster::Cluster,
    real::{Up, binary, spec},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::process::Command;

fn echo() -> serde_json::Value {
    spec(&["cat"], "exec", json!({"resources": {"cpu": 0.25}}))
}

#[tokio::test]
async fn schedulers_speak_to_clients_and_to_each_other_encrypted() {
    // RELIABILITY §4.1 A3
    let bench =
        Cluster::start(Size { etcd: 1, schedulers: 2, workers: 1, tls: true, ..Size::default() }).await.unwrap();
    assert!(bench.local.schedulers.iter().all(|s| s.url.starts_with("https://")));
    bench.deploy("echo", &echo()).await.unwrap();
    let owner = bench.owner(0, "echo").await;
    // The one that does not own it passes it on, a stream too.
    let other = 1 - owner;
    assert_eq!(bench.invoke(other, "echo", "1").await, (200, json!(1)));
    let body: String = (0..500).map(|n| format!("{n}\n")).collect();
    let text =
        bench.http.post(bench.function(other, "echo", "/map")).body(body).send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().count(), 500);
    let view = bench.get(other, "/v1/schedulers").await;
    let encrypted = |s: &serde_json::Value| s["url"].as_str().is_some_and(|url| url.starts_with("https://"));
    assert!(view["schedulers"].as_array().unwrap().iter().all(encrypted), "{view}");
    // The command line believes the authority, and nobody without it.
    let url = &bench.local.schedulers[0].url;
    let invoke = async |arguments: &[&str]| {
        let mut command = Command::new(binary("capstan").unwrap());
        // This thread must go on meanwhile: the cluster's links pass through it.
        let ran = command.args(["--url", url]).args(arguments).output().await.unwrap();
        (ran.status.code(), String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned())
    };
    let ca = bench.local.ca.clone().unwrap().display().to_string();
    assert_eq!(invoke(&["--ca", &ca, "invoke", "echo", "7"]).await, (Some(0), "7\n".into()));
    let (code, text) = invoke(&["invoke", "echo", "7"]).await;
    assert!(code == Some(4) && text.contains("certificate") && text.contains("--ca"), "{text}");
    let (code, text) = invoke(&["--ca", "/dev/null", "invoke", "echo", "7"]).await;
    assert!(code == Some(2) && text.contains("/dev/null"), "{code:?} {text}");
    // Whoever does not speak TLS gets nothing.
    let plain = client::trusting(None, false).unwrap().build().unwrap();
    assert!(plain.get(url.replace("https", "http") + "/v1/workers").send().await.is_err());
}

#[tokio::test]
async fn an_operators_own_certificate_is_shown_to_clients() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("own.pem"), folder.path().join("own.key"));
    let pair = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "capstan.example.org".into()];
    let own = CertificateParams::new(names).unwrap().self_signed(&pair).unwrap();
    std::fs::write(&certificate, own.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let set = |name: &str, value: &str| format!("--set=scheduler.{name}={value}");
    let with = |key: &std::path::Path| {
        vec![
            set("rest_tls", "true"),
            set("rest_cert_file", &certificate.display().to_string()),
            set("rest_key_file", &key.display().to_string()),
        ]
    };
    let start = |arguments: Vec<String>| {
        Up::start(&folder.path().join("data"), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let up = start(with(&key)).unwrap();
    let ours = client::trusting(Some(&certificate), true).unwrap().build().unwrap();
    assert_eq!(ours.get(up.at("/readyz")).send().await.unwrap().status(), 200);
    let authority = folder.path().join("data/authority.pem");
    let theirs = client::trusting(Some(&authority), true).unwrap().build().unwrap();
    assert!(theirs.get(up.at("/readyz")).send().await.is_err());
    drop(up);
    // Another certificate's key, a file that is none, and one without the other.
    let strange = folder.path().join("strange.key");
    std::fs::write(&strange, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let refused = |arguments| start(arguments).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused(with(&strange)).contains("do not belong together"), "{}", refused(with(&strange)));
    assert!(refused(with(&folder.path().join("none"))).contains("rest_key_file"));
    assert!(refused(vec![set("rest_tls", "true"), set("rest_cert_file", "a")]).contains("set both, or neither"));
}

#[tokio::test]
async fn a_functions_programs_reach_an_encrypted_scheduler_and_know_whom_they_speak_to() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"), &["--set=scheduler.rest_tls=true"]).unwrap();
    let authority = folder.path().join("data/authority.pem");
    let http = client::trusting(Some(&authority), true).unwrap().build().unwrap();
    let script = "curl -s --cacert $CAPSTAN_CA -H \"Authorization: Bearer $CAPSTAN_TOKEN\" $CAPSTAN_URL/v1/namespaces/$CAPSTAN_NAMESPACE/functions/$CAPSTAN_FUNCTION/stats";
    for trusted in [false, true] {
        let body =
            json!({"runtime": {"process": {"command": ["sh", "-c", script]}}, "protocol": "exec", "trusted": trusted});
        let url = up.function("asks", "");
        http.put(&url).json(&body).send().await.unwrap().error_for_status().unwrap();
        let answer = http.post(format!("{url}/invoke")).json(&json!(null)).send().await.unwrap();
        let stats: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(stats["running"], 1, "{stats}");
    }
}
