//! The manifests for Kubernetes say what the WVA guide says.

use serde_json::{Value, json};

fn manifest(name: &str) -> Value {
    let path = super::root().join("deploy/kubernetes").join(name);
    let text = std::fs::read_to_string(path).expect("a manifest");
    serde_saphyr::from_str(&text).expect("YAML")
}

#[test]
fn the_hpa_scales_a_deployment_by_the_metric_down_to_zero() {
    // SPEC T03 T04 T05 T06 T08 T09
    let hpa = manifest("hpa.yaml");
    assert_eq!((&hpa["apiVersion"], &hpa["kind"]), (&json!("autoscaling/v2"), &json!("HorizontalPodAutoscaler")));
    let spec = &hpa["spec"];
    assert_eq!((&spec["minReplicas"], &spec["maxReplicas"]), (&json!(0), &json!(10)));
    assert_eq!(spec["scaleTargetRef"]["apiVersion"], "apps/v1");
    let object = &spec["metrics"][0]["object"];
    assert_eq!(object["metric"]["name"], "inferno_desired_replicas");
    assert_eq!(object["describedObject"]["kind"], "VariantAutoscaling");
    assert_eq!(object["target"], json!({"type": "AverageValue", "averageValue": "1"}));
    let policy = |direction: &str| spec["behavior"][direction].clone();
    let down =
        json!({"stabilizationWindowSeconds": 240, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]});
    let up = json!({"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 5, "periodSeconds": 30}]});
    assert_eq!((policy("scaleDown"), policy("scaleUp")), (down, up));
}

#[test]
fn the_guide_names_the_steps_the_gate_and_the_retentions() {
    // SPEC T01 T02 V08 W01 W02 W03 W07
    let guide = std::fs::read_to_string(super::root().join("docs/kubernetes.md")).expect("the guide");
    for said in [
        "feature gate `HPAScaleToZero`",
        "minReplicas: 0",
        "capstan scale-to-zero apply",
        "kube-apiserver.yaml",
        "kube-controller-manager",
        "grep -i scaletozero",
        "| development and tests | 2–5 minutes |",
        "| production, bursty | 15–30 minutes |",
        "| scheduled work | 5–10 minutes |",
        "one container is always kept",
        "15 minutes in production",
        "capstan_cold_start_phase_seconds",
    ] {
        assert!(guide.contains(said), "{said}");
    }
}

#[test]
fn the_scaled_object_asks_by_both_labels() {
    // SPEC U01 U02 U03
    let object = manifest("scaledobject-prometheus.yaml");
    let spec = &object["spec"];
    let numbers = ["minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"].map(|n| spec[n].clone());
    assert_eq!(numbers, [json!(0), json!(10), json!(30), json!(300)]);
    let trigger = &spec["triggers"][0];
    assert_eq!((&trigger["type"], &trigger["metadata"]["threshold"]), (&json!("prometheus"), &json!("1")));
    let query = trigger["metadata"]["query"].as_str().expect("a query");
    assert!(query.contains("variantautoscaling_name=") && query.contains("variantautoscaling_namespace="));
    assert_eq!(manifest("scaledobject-push.yaml")["spec"]["triggers"][0]["type"], "external-push");
}
