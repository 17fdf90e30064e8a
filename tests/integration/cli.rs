//! The command line against a running scheduler: what it prints, and how it exits.

use crate::fresh;
use capstan_tests::real::{Up, binary, spec};
use serde_json::{Value, json};
use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

/// Runs `capstan` with arguments and standard input.
fn capstan(url: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(binary("capstan").unwrap())
        .args(["--url", url])
        .args(arguments)
        // A proxy of the environment is not for this machine.
        .env("http_proxy", "http://127.0.0.1:9")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that reads no input has closed its end.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", out(output)))
}

async fn served() -> (tempfile::TempDir, Up) {
    let (folder, up) = fresh(&[]);
    up.deploy("cat", spec(&["cat"], "exec", json!({}))).await.unwrap();
    up.deploy("no", spec(&["sh", "-c", "echo ohno >&2; exit 1"], "exec", json!({}))).await.unwrap();
    (folder, up)
}

#[tokio::test]
async fn every_exit_code_says_what_went_wrong() {
    let (folder, up) = served().await;
    let run = |arguments: &[&str]| capstan(&up.url, arguments, "");
    let good = run(&["invoke", "cat", "{\"a\":1}"]);
    assert_eq!((code(&good), out(&good).trim()), (0, "{\"a\":1}"));
    let failed = run(&["invoke", "no", "1"]);
    assert_eq!(code(&failed), 1);
    assert!(String::from_utf8_lossy(&failed.stderr).contains("ohno"));
    assert_eq!(code(&run(&["invoke"])), 2);
    assert_eq!(code(&run(&["invoke", "nothing", "1"])), 3);
    assert_eq!(code(&run(&["autoscaler", "cat", "--min", "5", "--max", "1"])), 3);
    assert_eq!(code(&run(&["autoscaler", "cat", "--reset", "speed"])), 2);
    assert_eq!(code(&capstan("http://127.0.0.1:9", &["functions"], "")), 4);
    let open =
        capstan("", &["up", "--listen", "0.0.0.0:0", "--data-dir", folder.path().join("x").to_str().unwrap()], "");
    assert_eq!(code(&open), 2, "{}", String::from_utf8_lossy(&open.stderr));
    let taken = capstan("", &["up", "--listen", "127.0.0.1:0", "--data-dir", up.data.to_str().unwrap()], "");
    assert_eq!(code(&taken), 3, "{}", String::from_utf8_lossy(&taken.stderr));
}

#[tokio::test]
async fn json_is_what_the_interface_answered() {
    let (folder, up) = served().await;
    let run = |arguments: &[&str]| json_of(&capstan(&up.url, &[arguments, &["--json"]].concat(), "1\n2\n"));
    let spawned = run(&["spawn", "cat", "--file", "-"]);
    let id = spawned["call_id"].as_str().unwrap().to_owned();
    assert_eq!(spawned["inputs"], 2);
    let results = capstan(&up.url, &["results", &id, "--wait"], "");
    assert_eq!((code(&results), out(&results).lines().count()), (0, 2));
    assert_eq!(run(&["call", &id])["state"], "succeeded");
    assert_eq!(run(&["calls"])["calls"][0]["id"], id.as_str());
    assert_eq!(run(&["functions"])["functions"][0]["name"], "cat");
    assert_eq!(run(&["workers"])["workers"][0]["state"], "ready");
    assert_eq!(run(&["containers", "--namespace", "nobody"])["containers"], json!([]));
    assert_eq!(run(&["autoscaler", "cat", "--max", "3"])["effective"]["max_containers"], 3);
    assert_eq!(run(&["autoscaler", "cat", "--reset", "max"])["overrides"], json!({}));
    assert!(run(&["explain", "cat"])["decisions"].is_array());
    assert_eq!(run(&["explain", &id, "1"])["state"], "succeeded");
    assert!(run(&["config"])["scheduler.listen"]["value"].is_string());
    let manifest = folder.path().join("f.toml");
    std::fs::write(&manifest, "name = 'toml'\nprotocol = 'exec'\n[runtime.process]\ncommand = ['cat']\n").unwrap();
    assert_eq!(run(&["deploy", manifest.to_str().unwrap()])[0]["name"], "toml");
    // What is printed as a manifest deploys the same again.
    let printed = out(&capstan(&up.url, &["get", "toml"], ""));
    std::fs::write(folder.path().join("again.yaml"), &printed).unwrap();
    let again = run(&["deploy", folder.path().join("again.yaml").to_str().unwrap()]);
    assert_eq!((&again[0]["revision"], &out(&capstan(&up.url, &["get", "toml"], ""))), (&json!(2), &printed));
    assert_eq!(run(&["revisions", "toml"])["revisions"][1]["revision"], 1);
    assert_eq!(run(&["rollback", "toml"])["revision"], 3);
    assert_eq!(code(&capstan(&up.url, &["rollback", "toml", "--to", "7"], "")), 3);
    assert_eq!(run(&["inputs", &id, "--state", "succeeded"])["inputs"].as_array().unwrap().len(), 2);
    assert_eq!(run(&["summary", &id])["inputs"]["succeeded"], 2);
    assert_eq!(run(&["version"])["scheduler"]["api"], "v1");
    // Outputs are printed as they came.
    let exact = r#"{"b":1.0,"a":0.1000000000000000055511151231257827,"c":12345678901234567890123}"#;
    assert_eq!(out(&capstan(&up.url, &["invoke", "cat", exact], "")).trim_end(), exact);
    // One that is wrong keeps all from being deployed.
    let (both, good) = (folder.path().join("both.yaml"), folder.path().join("good.yaml"));
    let one = "{name: NAME, protocol: exec, runtime: {process: {command: [cat]}}, weight: WEIGHT}";
    let of = |name: &str, weight: &str| one.replace("NAME", name).replace("WEIGHT", weight);
    std::fs::write(&both, format!("functions: [{}, {}]", of("first", "1"), of("second", "0"))).unwrap();
    std::fs::write(&good, of("dry", "1")).unwrap();
    let refused = capstan(&up.url, &["deploy", both.to_str().unwrap()], "");
    assert_eq!(code(&refused), 3);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("second"));
    assert_eq!(run(&["deploy", "--dry-run", good.to_str().unwrap()])[0]["dry_run"], true);
    for name in ["first", "dry"] {
        assert_eq!(code(&capstan(&up.url, &["autoscaler", name], "")), 3, "{name} was deployed");
    }
    assert_eq!(run(&["remove", "toml"])["removed"], "toml");
}

#[tokio::test]
async fn a_map_is_judged_by_its_errors_and_not_by_what_outputs_look_like() {
    let (_folder, up) = served().await;
    let looks_wrong = "{\"error\":1}\n{\"error\":null}\n";
    let good = capstan(&up.url, &["map", "cat"], looks_wrong);
    assert_eq!((code(&good), out(&good).lines().count()), (0, 2), "{}", out(&good));
    assert_eq!(code(&capstan(&up.url, &["map", "no", "--collect"], "1\n")), 1);
    assert_eq!(code(&capstan(&up.url, &["map", "cat"], "1\nnot json\n")), 3);
}

#[tokio::test]
async fn recorded_traffic_is_played_again_with_other_settings() {
    let (folder, up) = served().await;
    up.map("cat", "", (0..50).map(|n| json!(n))).await.unwrap();
    let run = |arguments: &[&str]| capstan(&up.url, arguments, "");
    let told = json_of(&run(&["simulate", "--from", "cat", "--set", "max_containers=1", "--json"]));
    assert_eq!((&told["live"]["inputs"], &told["proposed"]["inputs"]), (&json!(50), &json!(50)), "{told}");
    assert_eq!(told["proposed"]["peak_containers"], 1);
    let (trace, picture) = (folder.path().join("day.csv"), folder.path().join("day.svg"));
    let lines: String = (0..100).map(|n| format!("{n},500\n")).collect();
    std::fs::write(&trace, format!("at,run_ms\n{lines}")).unwrap();
    let (trace, svg) = (trace.to_str().unwrap(), picture.to_str().unwrap());
    let shown = run(&["simulate", "--trace", trace, "--set", "scaledown_window=1", "--svg", svg]);
    assert!(code(&shown) == 0 && out(&shown).contains("proposed"), "{}", out(&shown));
    assert!(std::fs::read_to_string(picture).unwrap().contains("<polyline"));
    let advice = json_of(&run(&["advise", "--trace", trace, "--p95-wait", "200ms", "--json"]));
    assert!(advice["proposed"]["summary"]["wait_p95_ms"].as_f64().unwrap() <= 200.0, "{advice}");
    assert_eq!(code(&run(&["simulate", "--trace", trace, "--set", "speed=1"])), 2);
    assert_eq!(code(&run(&["simulate"])), 2);
    for wrong in [["--places", "0"], ["--start-ms", "1e300"], ["--start-ms", "nan"]] {
        assert_eq!(code(&run(&["simulate", "--trace", trace, wrong[0], wrong[1]])), 2, "{wrong:?}");
    }
}

#[test]
fn the_demo_runs_anywhere_and_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("inputs");
    std::fs::create_dir(&inputs).unwrap();
    for n in 0..20 {
        std::fs::write(inputs.join(format!("{n}.txt")), "some words\n".repeat(n)).unwrap();
    }
    let demo = Command::new(binary("capstan").unwrap())
        .args(["demo", "--inputs"])
        .arg(&inputs)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let told = out(&demo);
    assert_eq!(code(&demo), 0, "{told}{}", String::from_utf8_lossy(&demo.stderr));
    for part in ["20 (0 failed)", "cold start", "containers over time", "explain"] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
}

#[tokio::test]
async fn a_request_that_meets_a_limit_is_sent_again() {
    // SPEC M13
    let token = "0123456789abcdef";
    let limits =
        [format!("scheduler.tokens={token}"), "scheduler.rate_per_s=2".into(), "scheduler.rate_burst=2".into()];
    let (_folder, up) = fresh(&["--set", &limits[0], "--set", &limits[1], "--set", &limits[2]]);
    for _ in 0..8 {
        let listed = capstan(&up.url, &["--token", token, "functions"], "");
        assert_eq!(code(&listed), 0, "{}", String::from_utf8_lossy(&listed.stderr));
    }
}

#[tokio::test]
async fn mistakes_on_this_side_are_told_as_such() {
    let (folder, up) = served().await;
    for name in ["..", ".", "", "a/../b"] {
        let told = capstan(&up.url, &["invoke", name, "1"], "");
        assert_eq!(code(&told), 2, "{name}: {told:?}");
    }
    let told = capstan(&up.url, &["--token", "a\nb", "functions"], "");
    assert_eq!(code(&told), 2, "{told:?}");
    let told = capstan(&up.url, &["map", "cat", &folder.path().display().to_string()], "");
    assert_eq!(code(&told), 2, "a folder is no file: {told:?}");
}

#[tokio::test]
async fn what_an_input_waits_for_is_said() {
    use std::io::BufRead;
    let (_folder, up) = served().await;
    up.deploy("large", spec(&["cat"], "exec", json!({"resources": {"cpu": 10_000}}))).await.unwrap();
    let mut child = Command::new(binary("capstan").unwrap())
        .args(["--url", &up.url, "invoke", "large", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.starts_with("waiting: no_capacity: "), "{line}");
}
