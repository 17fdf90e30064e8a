//! What is deployed denies by default: rights, networks, ports and secrets of the compose file, the chart and the units.

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(workspace().join("deploy").join(path)).unwrap()
}

fn yaml(text: &str) -> Vec<Value> {
    // Anchors and merge keys are resolved, as Compose does.
    serde_saphyr::from_multiple(text).unwrap()
}

#[test]
fn composed_services_have_no_right_that_they_do_not_need() {
    let composed = &yaml(&text("compose/compose.yaml"))[0];
    let services = composed["services"].as_object().unwrap();
    assert!(services.len() > 8, "{services:?}");
    for (name, service) in services {
        assert_eq!(service["cap_drop"][0], "ALL", "{name}");
        assert!(service["privileged"].is_null() && service["network_mode"] != "host", "{name}");
        if name == "certificates" {
            assert_eq!(service["network_mode"], "none");
            continue;
        }
        let security = service["security_opt"].to_string();
        assert!(security.contains("no-new-privileges:true"), "{name}: {security}");
        assert!(service["pids_limit"].is_u64(), "{name}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name} is published to others: {port}");
        }
        let networks = service["networks"].to_string();
        let reached = |network: &str| networks.contains(&format!("\"{network}\""));
        match name.split('-').next().unwrap() {
            // A function is on the same network as its worker.
            "worker" => assert!(reached("workers") && !reached("store") && !reached("control"), "{name}: {networks}"),
            "etcd" => {
                assert!(reached("store") && !reached("workers"), "{name}: {networks}");
                assert_eq!(service["environment"]["ETCD_CLIENT_CERT_AUTH"], "true");
                assert_eq!(service["environment"]["ETCD_PEER_CLIENT_CERT_AUTH"], "true");
            }
            "scheduler" => {
                assert_eq!(service["environment"]["CAPSTAN_SCHEDULER__LINK_TLS"], "true");
                assert!(service["environment"]["CAPSTAN_TOKENS"].is_null(), "a token in the environment");
                assert_eq!(service["read_only"], true);
            }
            _ => assert!(!reached("workers") && !reached("store"), "{name}: {networks}"),
        }
    }
}

#[test]
fn a_pod_of_the_chart_is_nobody_and_tells_nothing_to_the_environment() {
    let rendered = Command::new(workspace().join("target/helm/helm"))
        .args(["template", "capstan"])
        .arg(workspace().join("deploy/kubernetes/chart"))
        .args(["--set", "auth.secret=tokens", "--set", "scheduler.keda.enabled=true"])
        .output()
        .expect("helm; test.sh fetches it");
    let documents = yaml(&String::from_utf8(rendered.stdout).unwrap());
    let of =
        |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    let pod = &of("StatefulSet")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["capabilities"]["drop"][0], "ALL");
    assert_eq!(
        (&security["readOnlyRootFilesystem"], &security["allowPrivilegeEscalation"]),
        (&true.into(), &false.into())
    );
    assert!(container["resources"]["limits"]["memory"].is_string());
    let variables = container["env"].as_array().unwrap();
    assert!(variables.iter().all(|variable| variable["valueFrom"].is_null()), "a secret in the environment");
    let policy = &of("NetworkPolicy")["spec"];
    let keda = policy["ingress"].as_array().unwrap().iter().find(|rule| rule["ports"][0]["port"] == 7071).unwrap();
    assert!(keda["from"][0]["namespaceSelector"].is_object(), "anybody may ask as KEDA: {policy}");
}

#[test]
fn units_run_with_few_rights() {
    let (scheduler, worker) = (text("systemd/capstan-scheduler.service"), text("systemd/capstan-worker.service"));
    for line in ["User=capstan", "NoNewPrivileges=true", "CapabilityBoundingSet=", "ProtectSystem=strict", "UMask=0007"]
    {
        assert!(scheduler.lines().any(|l| l == line), "the scheduler's unit lacks {line}");
    }
    let bounded = worker.lines().any(|line| line.starts_with("CapabilityBoundingSet=") && !line.contains('~'));
    assert!(bounded, "the worker's unit has all rights");
}
