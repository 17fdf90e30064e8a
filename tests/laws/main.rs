//! The laws of the design, as far as tools can keep them: what cores may depend on, that routes and their description agree,
//! and that house rules hold in the sources.

mod kubernetes;

use capstan_tests::real::Up;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf()
}

/// Crates that a core may link, directly or not. A new one is a decision: write it here, with its reason in the review.
const CORE_MAY_LINK: [&str; 1] = ["laws/core-dependencies.txt"];

fn links_of(package: &str) -> BTreeSet<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", package, "-e", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .expect("cargo tree");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).expect("text");
    text.lines().filter_map(|line| line.split(' ').next()).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_cores_link_only_what_is_on_the_list() {
    let list = std::fs::read_to_string(root().join("tests").join(CORE_MAY_LINK[0])).expect("the list");
    let allowed: BTreeSet<String> = list.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect();
    for core in ["capstan-scheduler-core", "capstan-worker-core"] {
        let new: Vec<_> = links_of(core).difference(&allowed).cloned().collect();
        assert!(new.is_empty(), "{core} links {new:?}: not on {}", CORE_MAY_LINK[0]);
    }
}

#[test]
fn scheduler_and_worker_never_see_each_other() {
    assert!(!links_of("capstan-scheduler").contains("capstan-worker"));
    assert!(!links_of("capstan-worker").contains("capstan-scheduler"));
    assert!(!links_of("capstan-worker").contains("capstan-scheduler-core"));
}

#[test]
fn verbs_know_no_transport_and_no_store() {
    // DESIGN §6: doors, peers and the command line share them.
    let linked = links_of("capstan-verb");
    for heavy in ["actix-web", "tokio", "hyper", "tonic", "etcd-client", "capstan-scheduler-core"] {
        assert!(!linked.contains(heavy), "capstan-verb links {heavy}");
    }
}

#[test]
fn the_route_knows_no_door() {
    for file in sources(&root().join("scheduler/src/route")) {
        let text = std::fs::read_to_string(&file).expect("text");
        for banned in ["crate::rest", "crate::keda", "actix"] {
            assert!(!text.contains(banned), "{} has {banned}", file.display());
        }
    }
}

/// Parts of doors that still see what lies behind the route: who asks is found out there, and streams are passed on whole.
const SEE_BEHIND: [&str; 14] = [
    "rest/calls.rs",
    "rest/claim.rs",
    "rest/cluster.rs",
    "rest/forward.rs",
    "rest/functions.rs",
    "rest/gate.rs",
    "rest/gather.rs",
    "rest/guard.rs",
    "rest/keys.rs",
    "rest/map.rs",
    "rest/mod.rs",
    "web/answer.rs",
    "web/asked.rs",
    "web/mod.rs",
];

#[test]
fn doors_know_verbs_and_the_route_and_those_that_see_more_are_counted() {
    // DESIGN §6. A door that needs no more is taken off the list; none is added.
    let files = sources(&root().join("scheduler/src/rest"));
    let sees = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).expect("text");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let imports = ["crate::api", "    api::", "crate::{api", "crate::actor", "    actor::", "crate::{actor"];
        imports.iter().any(|import| code.contains(import))
    };
    let listed = |file: &PathBuf| SEE_BEHIND.iter().any(|listed| file.ends_with(listed));
    for file in &files {
        assert_eq!(sees(file), listed(file), "{}", file.display());
    }
    assert!(files.len() > SEE_BEHIND.len());
}

#[test]
fn the_document_asks_for_the_rights_that_the_table_of_verbs_has() {
    // Until the document is made of the table: what is asked over REST as a verb, by its path and method.
    let document = std::fs::read_to_string(root().join("scheduler/src/rest/openapi.json")).expect("the document");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let of_a_function = "/v1/namespaces/{ns}/functions/{fn}";
    let asked = [
        ("function.Get", "get", of_a_function.to_owned()),
        ("function.Settings", "get", format!("{of_a_function}/autoscaler")),
        ("function.GetStats", "get", format!("{of_a_function}/stats")),
        ("function.Explain", "get", format!("{of_a_function}/explain")),
        ("function.Instances", "get", format!("{of_a_function}/instances")),
        ("function.Scaling", "get", format!("{of_a_function}/scaling")),
        ("function.Schedule", "get", format!("{of_a_function}/schedule")),
        ("function.List", "get", "/v1/namespaces/{ns}/functions".into()),
        ("call.Get", "get", "/v1/calls/{id}".into()),
        ("call.ExplainInput", "get", "/v1/calls/{id}/inputs/{index}/explain".into()),
        ("call.List", "get", "/v1/calls".into()),
        ("container.List", "get", "/v1/containers".into()),
        ("container.Stop", "post", "/v1/containers/{id}/stop".into()),
        ("cluster.Schedulers", "get", "/v1/schedulers".into()),
        ("cluster.Workers", "get", "/v1/workers".into()),
        ("cluster.Worker", "get", "/v1/workers/{id}".into()),
        ("namespace.Get", "get", "/v1/namespaces/{ns}".into()),
        ("namespace.List", "get", "/v1/namespaces".into()),
        ("function.Deploy", "put", of_a_function.into()),
        ("function.Patch", "patch", format!("{of_a_function}/autoscaler")),
        ("function.Remove", "delete", of_a_function.into()),
        ("function.PauseSchedule", "post", format!("{of_a_function}/schedule/pause")),
        ("function.RunSchedule", "post", format!("{of_a_function}/schedule/run")),
        ("call.Cancel", "post", "/v1/calls/{id}/cancel".into()),
        ("namespace.Set", "put", "/v1/namespaces/{ns}".into()),
        ("cluster.TurnWorker", "post", "/v1/workers/{id}/drain".into()),
        ("cluster.RevokeWorker", "post", "/v1/workers/{id}/revoke".into()),
        ("cluster.Invite", "post", "/v1/join-tokens".into()),
        ("model.ScaleToZero", "get", "/v1/scale-to-zero".into()),
        ("model.SetScaleToZero", "put", "/v1/scale-to-zero".into()),
        ("model.Effective", "get", "/v1/scale-to-zero/effective".into()),
        ("token.List", "get", "/v1/tokens".into()),
        ("token.Make", "post", "/v1/tokens".into()),
        ("token.Revoke", "delete", "/v1/tokens/{id}".into()),
        ("secret.List", "get", "/v1/namespaces/{ns}/secrets".into()),
        ("secret.Set", "put", "/v1/namespaces/{ns}/secrets/{name}".into()),
        ("secret.Remove", "delete", "/v1/namespaces/{ns}/secrets/{name}".into()),
        // KEDA's, which looks.
        ("function.AwaitActive", "get", format!("{of_a_function}/stats")),
        ("function.RequiredNodes", "get", format!("{of_a_function}/stats")),
        ("model.Serving", "get", format!("{of_a_function}/stats")),
        ("cluster.RequiredNodes", "get", "/v1/schedulers".into()),
        // Parts of others: a deployment that is tried, and who has a secret that is to be removed.
        ("function.Check", "put", of_a_function.into()),
        ("secret.Users", "delete", "/v1/namespaces/{ns}/secrets/{name}".into()),
        ("model.Query", "get", "/api/v1/query".into()),
        ("model.Gauges", "get", "/apis/external.metrics.k8s.io/v1beta1/namespaces/{ns}/{metric}".into()),
    ];
    let names: BTreeSet<&str> = asked.iter().map(|(verb, _, _)| *verb).collect();
    assert_eq!(names, capstan_verb::RIGHTS.iter().map(|rights| rights.verb).collect());
    for (verb, method, path) in asked {
        let rights = capstan_verb::RIGHTS.iter().find(|rights| rights.verb == verb).expect("a verb");
        let operation = &document["paths"][&path][method];
        let scope = match operation["x-scope"].as_str() {
            Some("namespace") => "In",
            Some("call" | "container") => "OfRecord",
            Some("list") => "List",
            _ => "Cluster",
        };
        assert_eq!((operation["x-role"].as_str(), scope), (Some(rights.role.name()), rights.scope), "{method} {path}");
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    capstan_tests::spec::sources(folder).expect("the sources")
}

#[test]
fn the_list_of_proven_statements_is_what_the_sources_say() {
    let page = capstan_tests::spec::page(&root()).expect("the page");
    let kept = std::fs::read_to_string(root().join("docs/spec-status.md")).expect("docs/spec-status.md");
    assert!(page == kept, "docs/spec-status.md is stale: cargo run -p capstan-tests -- spec-status");
}

#[test]
fn nothing_is_left_open_in_the_sources() {
    let files = sources(&root());
    assert!(files.len() > 50);
    let own = Path::new(file!()).file_name().expect("a name");
    for file in files.iter().filter(|f| !(f.ends_with("laws/main.rs") && own == "main.rs")) {
        let text = std::fs::read_to_string(file).expect("text");
        for banned in ["todo!(", "unimplemented!(", ".do_send(", "dbg!("] {
            assert!(!text.contains(banned), "{} has {banned}", file.display());
        }
    }
}

#[test]
fn cores_have_no_async_and_no_clock() {
    for core in ["scheduler/core/src", "worker/core/src"] {
        for file in sources(&root().join(core)) {
            let text = std::fs::read_to_string(&file).expect("text");
            for banned in [
                "async ",
                "Instant",
                "SystemTime",
                "std::thread",
                "std::fs",
                "std::net",
                "std::env",
                "HashMap",
                "tokio",
                "actix",
                "rand::",
            ] {
                assert!(!text.contains(banned), "{} has {banned}", file.display());
            }
        }
    }
}

#[tokio::test]
async fn every_described_path_exists_and_no_other_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let up = Up::start(&folder.path().join("data"), &[]).expect("capstan up");
    let document: Value = up.get("/openapi.json").await.expect("the document");
    assert!(document["openapi"].as_str().expect("a version").starts_with("3.1"));
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let asked = path
            .replace("{ns}", "default")
            .replace("{fn}", "nothing")
            .replace("{id}", "nothing")
            .replace("{index}", "0")
            .replace("{metric}", "inferno_desired_replicas")
            .replace("{resource}", "variantautoscalings.llmd.ai")
            .replace("{name}", "*");
        for method in methods.as_object().expect("methods").keys() {
            if path == "/v1/events" {
                continue;
            }
            let verb = method.to_uppercase().parse().expect("a method");
            let response = up.http.request(verb, up.at(&asked)).body("{}").send().await.expect("an answer");
            let status = response.status().as_u16();
            let text = response.text().await.expect("text");
            assert!(
                !text.contains("there is no ") && status != 405 && status < 500,
                "{method} {path}: {status} {text}"
            );
            let described = &methods[method]["responses"];
            assert!(
                !described[status.to_string()].is_null(),
                "{method} {path} answered {status}, which is not described"
            );
        }
        let patched = up.http.request(reqwest::Method::TRACE, up.at(&asked)).send().await.expect("an answer");
        assert_eq!(patched.status().as_u16(), 405, "{path}");
    }
    let page = up.http.get(up.at("/docs/")).send().await.expect("the page");
    assert_eq!(page.status().as_u16(), 200);
}

#[tokio::test]
async fn no_metric_is_registered_that_nothing_sets() {
    // DESIGN §8: a metric that nothing increments fails.
    let source = std::fs::read_to_string(root().join("scheduler/src/telemetry/metrics.rs")).expect("the metrics");
    let all = sources(&root().join("scheduler/src"));
    let everything: String = all.iter().map(|f| std::fs::read_to_string(f).expect("text")).collect();
    let fields = source.lines().filter_map(|l| l.trim().trim_start_matches("pub ").split_once(": "));
    let metrics =
        fields.filter(|(_, kind)| ["Family<", "Counter,", "Histogram,", "Gauge,"].iter().any(|k| kind.starts_with(k)));
    let mut count = 0;
    for (name, _) in metrics {
        count += 1;
        let uses = everything.matches(&format!(".{name}")).count();
        assert!(uses >= 2, "metric {name} is registered and never set");
    }
    assert!(count > 10);
}
