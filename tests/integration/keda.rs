//! KEDA's external scaler, asked by a client that is written from its description.

use crate::fresh;
use capstan::local::Size;
use capstan_scheduler::keda::proto::{
    GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient,
};
use capstan_tests::{
    cluster::{Cluster, eventually},
    real::spec,
};
use serde_json::json;
use std::{collections::HashMap, time::Duration};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let scaler_metadata: HashMap<String, String> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    ScaledObjectRef { name: "scaled".into(), namespace: "cluster".into(), scaler_metadata }
}

#[tokio::test]
async fn keda_is_told_what_a_function_wants_and_when_it_wakes() {
    // SPEC U05 and section 3.7
    let port = capstan::local::free_ports(1).unwrap()[0];
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

type Keda = ExternalScalerClient<tonic::transport::Channel>;

async fn ask(keda: &mut Keda, metadata: &[(&str, &str)]) -> Result<i64, tonic::Status> {
    let asked = GetMetricsRequest { scaled_object_ref: Some(object(metadata)), metric_name: String::new() };
    Ok(keda.get_metrics(asked).await?.into_inner().metric_values[0].metric_value)
}

#[tokio::test]
async fn keda_may_ask_by_model_and_for_the_nodes_that_capstan_needs() {
    // SPEC section 3.9
    let port = capstan::local::free_ports(1).unwrap()[0];
    let listen = format!("scheduler.keda_listen=127.0.0.1:{port}");
    let (_folder, up) = fresh(&["--set", &listen, "--set", "worker.cpu=4", "--set", "worker.memory_mib=4096"]);
    let half = json!({"resources": {"cpu": 0.5, "memory_mib": 64}, "autoscaler": {"min_containers": 3}});
    up.deploy("warm", spec(&["cat"], "exec", half)).await.unwrap();
    up.deploy("llama", spec(&["cat"], "exec", json!({"model_id": "meta/llama"}))).await.unwrap();
    up.until("warm", Duration::from_secs(20), |s| s["containers"]["idle"] == 3).await.unwrap();
    let mut keda = Keda::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
    // Scaling to zero is off for the model: it keeps one.
    assert_eq!(ask(&mut keda, &[("model", "meta/llama")]).await.unwrap(), 1);
    let unserved = ask(&mut keda, &[("model", "meta/llama"), ("namespace", "other")]).await.unwrap_err();
    assert!(unserved.code() == tonic::Code::NotFound && unserved.message().contains("meta/llama"), "{unserved}");
    let nodes = [("metric", "required_nodes"), ("nodeCpu", "1"), ("nodeMemoryMib", "1024")];
    let of_warm = [&[("function", "warm")], &nodes[..]].concat();
    // Two of half a core each fit on a node of one: three need two.
    assert_eq!(ask(&mut keda, &of_warm).await.unwrap(), 2);
    // With the model's own eighth of a core that is 1.625 cores in all.
    assert_eq!(ask(&mut keda, &nodes).await.unwrap(), 2);
    assert_eq!(ask(&mut keda, &nodes[..1]).await.unwrap(), 1, "as large as the worker");
    assert!(keda.is_active(object(&nodes)).await.unwrap().into_inner().result);
    let small = [("metric", "required_nodes"), ("function", "warm"), ("nodeCpu", "0.25"), ("nodeMemoryMib", "1024")];
    let refused = ask(&mut keda, &small).await.unwrap_err();
    assert!(refused.message().contains("does not hold a container"), "{refused}");
}

/// Keys of an authority of the operator's, and a certificate that it signed.
fn operators_authority() -> (String, Identity) {
    let (key, of_client) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["keda".into()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority.pem(), key).unwrap();
    let signed = params.signed_by(&of_client, &issuer).unwrap();
    (authority.pem(), Identity::from_pem(signed.pem(), of_client.serialize_pem()))
}

#[tokio::test]
async fn keda_is_served_encrypted_to_those_alone_who_show_a_certificate_and_schedulers_ask_each_other_so() {
    // SPEC section 3.9
    let folder = tempfile::tempdir().unwrap();
    let (theirs, (authority, identity)) = (folder.path().join("keda-ca.pem"), operators_authority());
    std::fs::write(&theirs, authority).unwrap();
    let set = [
        "scheduler.keda_listen=0.0.0.0:0".to_owned(),
        "scheduler.keda_tls=true".into(),
        "scheduler.tls_names=capstan.keda.svc".into(),
        format!("scheduler.keda_client_ca_file={}", theirs.display()),
    ];
    let size = Size { etcd: 1, schedulers: 3, workers: 1, tls: true, set: set.into(), ..Size::default() };
    let bench = Cluster::start(size).await.unwrap();
    let spec = spec(&["cat"], "exec", json!({"model_id": "meta/llama"}));
    bench.deploy("f", &spec).await.unwrap();
    let owner = bench.owner(0, "f").await;
    let mut doors = Vec::new();
    for n in (0..3).filter(|n| *n != owner) {
        let schedulers = bench.get(n, "/v1/schedulers").await;
        let own = schedulers["schedulers"].as_array().unwrap().iter().find(|s| s["answers"] == true).cloned();
        doors.push(format!("https://{}", own.unwrap()["keda"].as_str().unwrap()));
    }
    let ours = std::fs::read_to_string(bench.folder.path().join("scheduler-1/authority.pem")).unwrap();
    let believes = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ours)).domain_name("capstan.keda.svc");
    let at = |door: &String, tls: ClientTlsConfig| {
        Keda::new(Endpoint::from_shared(door.clone()).unwrap().tls_config(tls).unwrap().connect_lazy())
    };
    let model = object(&[("model", "meta/llama")]);
    // Neither owns the function, and one of the others each may ask does not either.
    for door in &doors {
        let mut keda = at(door, believes.clone().identity(identity.clone()));
        assert!(keda.is_active(model.clone()).await.unwrap().into_inner().result);
        let mut active = keda.stream_is_active(model.clone()).await.unwrap().into_inner();
        assert!(active.message().await.unwrap().unwrap().result);
        let unserved = keda.stream_is_active(object(&[("model", "meta/other")])).await.unwrap_err();
        assert_eq!(unserved.code(), tonic::Code::NotFound);
    }
    let connect = async |tls: ClientTlsConfig| at(&doors[0], tls).is_active(model.clone()).await;
    // Nobody else: without a certificate, with one that somebody else signed, or with a worker's.
    assert!(connect(believes.clone()).await.is_err());
    assert!(connect(believes.clone().identity(operators_authority().1)).await.is_err());
    let worker = std::fs::read(bench.folder.path().join("worker-1/identity.json")).unwrap();
    let worker: serde_json::Value = serde_json::from_slice(&worker).unwrap();
    let part = |name: &str| worker[name].as_str().unwrap().to_owned();
    let of_worker = Identity::from_pem(part("certificate"), part("key"));
    assert!(connect(believes.identity(of_worker)).await.is_err());
    let strangers = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(operators_authority().0));
    assert!(connect(strangers.domain_name("capstan.keda.svc").identity(identity)).await.is_err());
}

#[tokio::test]
async fn any_scheduler_tells_keda_of_any_function_and_goes_on_when_its_owner_dies() {
    // SPEC U05 and section 3.7
    let set = ["scheduler.keda_listen=0.0.0.0:0".to_owned(), "scheduler.keda_open=true".to_owned()];
    let size = Size { etcd: 1, schedulers: 2, set: set.into(), ..Size::default() };
    let mut bench = Cluster::start(size).await.unwrap();
    bench.deploy("f", &spec(&["sh", "-c", "sleep 0.5"], "exec", json!({"resources": {"cpu": 0.25}}))).await.unwrap();
    let owner = bench.owner(0, "f").await;
    let other = 1 - owner;
    let schedulers = bench.get(other, "/v1/schedulers").await;
    let door =
        schedulers["schedulers"].as_array().unwrap().iter().find(|s| s["answers"] == true).unwrap()["keda"].clone();
    let mut keda = ExternalScalerClient::connect(format!("http://{}", door.as_str().unwrap())).await.unwrap();
    let f = object(&[("function", "f"), ("metric", "backlog")]);
    assert!(!keda.is_active(f.clone()).await.unwrap().into_inner().result);
    let asked = GetMetricsRequest { scaled_object_ref: Some(f.clone()), metric_name: "backlog".into() };
    assert_eq!(keda.get_metrics(asked.clone()).await.unwrap().into_inner().metric_values[0].metric_value, 0);
    let nothing = object(&[("function", "nothing")]);
    assert_eq!(keda.is_active(nothing).await.unwrap_err().code(), tonic::Code::NotFound);

    let mut active = keda.stream_is_active(f.clone()).await.unwrap().into_inner();
    assert!(!active.message().await.unwrap().unwrap().result);
    let send = async |bench: &Cluster| {
        let url = bench.function(other, "f", "/spawn_map");
        bench.http.post(url).body("1\n2\n").send().await.unwrap().error_for_status().unwrap();
    };
    send(&bench).await;
    assert!(active.message().await.unwrap().unwrap().result, "it was not told of the work");
    assert!(!active.message().await.unwrap().unwrap().result, "it was not told of the end");
    // The owner dies: the same stream tells of what the next one gets.
    bench.local.schedulers[owner].process.kill().await.unwrap();
    eventually("the next owner", async || (bench.owner(other, "f").await == other).then_some(())).await;
    send(&bench).await;
    assert!(active.message().await.unwrap().unwrap().result, "it was not told of the next owner's work");
    assert!(keda.get_metrics(asked).await.is_ok());
}
