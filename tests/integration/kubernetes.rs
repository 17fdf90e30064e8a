//! The chart, rendered by the real helm, and what it makes of Capstan.

use capstan_tests::real::Up;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Renders the chart as `helm upgrade -i` would.
fn helm(arguments: &[&str]) -> (bool, String) {
    let rendered = Command::new(workspace().join("target/helm/helm"))
        .args(["template", "workload-variant-autoscaler"])
        .arg(workspace().join("deploy/kubernetes/chart"))
        .args(["--is-upgrade", "--namespace", "workload-variant-autoscaler-system"])
        .args(arguments)
        .output()
        .expect("helm; test.sh fetches it");
    let text = if rendered.status.success() { rendered.stdout } else { rendered.stderr };
    (rendered.status.success(), String::from_utf8(text).unwrap())
}

/// The value of a variable in a rendered manifest.
fn variable<'a>(manifest: &'a str, name: &str) -> &'a str {
    let (_, after) = manifest.split_once(&format!("- name: {name}\n")).expect("the variable");
    let line = after.lines().next().unwrap();
    line.trim().strip_prefix("value: ").expect("a plain value").trim_matches('"')
}

#[tokio::test]
async fn the_charts_switch_is_the_systems_default_for_models() {
    // SPEC Q01 Q02 Q03
    for (arguments, enabled) in [(&[][..], false), (&["--set", "wva.scaleToZero=true"][..], true)] {
        let (_, manifest) = helm(&[&["--set", "auth.secret=tokens"], arguments].concat());
        let switch = variable(&manifest, "WVA_SCALE_TO_ZERO").to_owned();
        let folder = tempfile::tempdir().unwrap();
        let up = Up::start_with(&folder.path().join("data"), &[], |command| {
            command.env("WVA_SCALE_TO_ZERO", &switch);
        })
        .unwrap();
        let effective = up.get("/v1/scale-to-zero/effective?model_id=m&namespace=default").await.unwrap();
        assert_eq!(effective["enable_scale_to_zero"], Value::Bool(enabled), "{effective}");
    }
}

#[test]
fn a_chart_without_tokens_is_refused_by_name() {
    let (rendered, why) = helm(&[]);
    assert!(!rendered && why.contains("auth.secret must name a Secret"), "{why}");
}
