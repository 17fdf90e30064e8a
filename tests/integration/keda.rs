//! KEDA's external scaler, asked by a client that is written from its description.

use crate::fresh;
use capstan_scheduler::keda::proto::{
    GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
};
use capstan_tests::real::spec;
use serde_json::json;
use std::{collections::HashMap, time::Duration};

fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let scaler_metadata: HashMap<String, String> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    ScaledObjectRef { name: "scaled".into(), namespace: "cluster".into(), scaler_metadata }
}

#[tokio::test]
async fn keda_is_told_what_a_function_wants_and_when_it_wakes() {
    // SPEC U05 and section 3.7
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_folder, up) = fresh(&["--set", &format!("scheduler.keda_listen=127.0.0.1:{port}")]);
    up.deploy("f", spec(&["sh", "-c", "sleep 1"], "exec", json!({}))).await.unwrap();
    let mut keda = ExternalScalerClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
    let f = object(&[("function", "f"), ("target", "2.5")]);
    assert!(!keda.is_active(f.clone()).await.unwrap().into_inner().result);
    let specs = keda.get_metric_spec(f.clone()).await.unwrap().into_inner().metric_specs;
    assert_eq!(
        (specs[0].metric_name.as_str(), specs[0].target_size, specs[0].target_size_float),
        ("desired_replicas", 3, 2.5)
    );
    let asked = GetMetricsRequest { scaled_object_ref: Some(f.clone()), metric_name: "desired_replicas".into() };
    let values = keda.get_metrics(asked.clone()).await.unwrap().into_inner().metric_values;
    assert_eq!((values[0].metric_value, values[0].metric_value_float), (0, 0.0));
    let mut specs = keda.stream_metric_spec(f.clone()).await.unwrap().into_inner();
    assert_eq!(specs.message().await.unwrap().unwrap().metric_specs.len(), 1);

    let mut active = keda.stream_is_active(f.clone()).await.unwrap().into_inner();
    assert!(!active.message().await.unwrap().unwrap().result);
    up.post(&up.function("f", "/spawn_map"), "1\n2\n3\n").await.unwrap();
    // Pushed by the event, long before the stream's own next look.
    let pushed = tokio::time::timeout(Duration::from_secs(3), active.message()).await.unwrap();
    assert!(pushed.unwrap().unwrap().result);
    assert!(keda.get_metrics(asked).await.unwrap().into_inner().metric_values[0].metric_value > 0);
    let slept = tokio::time::timeout(Duration::from_secs(20), active.message()).await.unwrap();
    assert!(!slept.unwrap().unwrap().result);

    for (wrong, code) in [
        (object(&[]), tonic::Code::InvalidArgument),
        (object(&[("function", "f"), ("target", "0")]), tonic::Code::InvalidArgument),
        (object(&[("function", "f"), ("metric", "speed")]), tonic::Code::InvalidArgument),
    ] {
        assert_eq!(keda.get_metric_spec(wrong).await.unwrap_err().code(), code);
    }
    let nothing = object(&[("function", "nothing")]);
    assert_eq!(keda.is_active(nothing).await.unwrap_err().code(), tonic::Code::NotFound);
}
