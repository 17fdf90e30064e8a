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
const SEE_BEHIND: [&str; 12] = [
    "rest/calls.rs",
    "rest/claim.rs",
    "rest/cluster.rs",
    "rest/events.rs",
    "rest/forward.rs",
    "rest/gate.rs",
    "rest/guard.rs",
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

/// Verbs that no path asks by itself: parts of others, and what KEDA's door asks.
const INNER: [&str; 8] = [
    "cluster.RequiredNodes",
    "function.AwaitActive",
    "function.AwaitDeployed",
    "function.Check",
    "function.RequiredNodes",
    "model.Gauges",
    "model.Serving",
    "secret.Users",
];

#[test]
fn each_operation_of_the_interface_is_a_verb_with_its_rights_or_known_not_to_be_one() {
    // DESIGN §6. Bodies that stream, another's interface, and what the server says of itself.
    let others = [
        "spawnMap",
        "map",
        "streamEvents",
        "webGet",
        "webPut",
        "webPost",
        "webPatch",
        "webDelete",
        "listExternalMetrics",
        "getExternalMetric",
        "listCustomMetrics",
        "getCustomMetric",
        "getHealth",
        "getReadiness",
        "getMetrics",
        "getDocument",
        "getHome",
    ];
    let document = capstan_scheduler::rest::document();
    let (mut asked, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["tags"][0].is_string() && operation["summary"].is_string(), "{id}");
            let Some(verb) = operation["x-verb"].as_str() else {
                assert!(others.contains(&id), "{method} {path} ({id}) asks no verb");
                continue;
            };
            let rights = capstan_verb::RIGHTS.iter().find(|rights| rights.verb == verb).expect("a verb");
            assert_eq!(operation["x-role"], rights.role.name(), "{id}");
            let scope = if rights.scope == "In" {
                "namespace"
            } else if rights.scope == "OfRecord" {
                "record"
            } else {
                rights.scope
            };
            assert_eq!(operation["x-scope"], scope.to_lowercase(), "{id}");
            // What needs no look-up is refused before any: a verb of a namespace has it in its path.
            assert!(rights.scope != "In" || path.contains("{ns}"), "{id}");
            asked.insert(verb.to_owned());
        }
    }
    let text = document.to_string();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap_or_default();
        assert!(document["components"]["schemas"][name].is_object(), "{name} is referred to and not there");
    }
    let all: BTreeSet<String> = capstan_verb::RIGHTS.iter().map(|rights| rights.verb.to_owned()).collect();
    let unasked: BTreeSet<&str> = all.difference(&asked).map(String::as_str).collect();
    assert_eq!(unasked, INNER.into_iter().collect());
    assert!(others.iter().all(|other| ids.contains(*other)), "{ids:?}");
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
