//! Functions: deployed, looked at, scaled, scheduled, and their web addresses.

use super::{
    operation::{JSON, NDJSON, Operation, Scope},
    shape::Shape,
    shapes::TraceLine,
    tagged,
};
use capstan_common::function::{FunctionSpec, OverridesPatch};
use capstan_verb::{access::Role, function, secret};
use serde_json::{Value, json};

const LIST: &str = "/v1/namespaces/{ns}/functions";
const ONE: &str = "/v1/namespaces/{ns}/functions/{fn}";
const AUTOSCALER: &str = "/v1/namespaces/{ns}/functions/{fn}/autoscaler";
const WEB: &str = "/web/{ns}/{fn}/{path}";
/// Bytes of a spec or a patch.
pub const SPEC_BYTES: usize = 1 << 20;
/// Bytes of a secret as JSON may write it.
pub const SECRET_BYTES: usize = 512 << 10;

fn spec() -> Value {
    json!({
        "runtime": {"process": {"command": ["python3", "handler.py"], "working_dir": "/srv/app"}},
        "protocol": "http",
        "autoscaler": {"max_containers": 10},
        "timeout_s": 60,
    })
}

fn wait() -> Value {
    json!({"type": "number", "minimum": 0, "maximum": 3600, "default": 0})
}

/// A precondition on the live revision.
fn conditional(operation: Operation) -> Operation {
    let schema = json!({"type": "string", "pattern": "^(\\*|\"?[0-9]{1,9}\"?)$"});
    operation.header("If-Match", schema, "only if this revision is live, or `*`: if any is").refuses(&[412])
}

pub fn operations() -> Vec<Operation> {
    let secrets = [
        Operation::of::<secret::List>(
            "GET",
            "/v1/namespaces/{ns}/secrets",
            "listSecrets",
            "Secrets of a namespace, without what they are",
            "secrets by name",
        ),
        Operation::of::<secret::Set>(
            "PUT",
            "/v1/namespaces/{ns}/secrets/{name}",
            "setSecret",
            "Sets a secret; it holds for containers that start from now on",
            "the changed secret",
        )
        .takes(Shape::of::<super::shapes::SecretValues>(), json!({"values": {"API_KEY": "…"}}), SECRET_BYTES)
        .answers(200, "the changed secret", JSON, Shape::of::<secret::SecretView>())
        .also(201, "the new secret"),
        Operation::of::<secret::Remove>(
            "DELETE",
            "/v1/namespaces/{ns}/secrets/{name}",
            "removeSecret",
            "Removes a secret that no function has",
            "",
        )
        .empty(204, "removed")
        .refuses(&[409]),
    ];
    [
        tagged("functions", deployment().into_iter().chain(revisions()).chain(looks())),
        tagged("autoscaler", autoscaler()),
        tagged("schedules", schedules()),
        tagged("secrets", secrets),
        tagged("web", web()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn deployment() -> [Operation; 4] {
    [
        Operation::of::<function::List>("GET", LIST, "listFunctions", "Lists functions by name", "a page of functions")
            .paged(100, 1000),
        Operation::of::<function::Get>(
            "GET",
            ONE,
            "getFunction",
            "A function",
            "the function; its ETag is the revision",
        ),
        conditional(Operation::of::<function::Deploy>("PUT", ONE, "deployFunction", "Deploys a new revision", ""))
            .about(
                "Dynamic autoscaler overrides are dropped. Running inputs finish on the old revision. Where a server of the old revision is ready, the new one takes over when its first container is ready (`live_revision`), and if its starts fail the old one goes on.",
            )
            .refuses(&[409])
            .query("force", json!({"type": "boolean", "default": false}), "take over at once, whether a container is ready or not")
            .query("wait_s", wait(), "answer when the new revision has taken over, or with 409 deploy_failed and its container's output")
            .query(
                "require_capacity",
                json!({"type": "boolean", "default": false}),
                "refuse what no worker could ever hold; otherwise that is a warning",
            )
            .takes(Shape::of::<FunctionSpec>(), spec(), SPEC_BYTES)
            .query(
                "dry_run",
                json!({"type": "boolean", "default": false}),
                "check only, and deploy nothing: the answer is then a CheckedFunction",
            )
            .answers(200, "a new revision, or with dry_run what would be deployed", JSON, deployed())
            .answers(201, "a new function", JSON, Shape::of::<function::FunctionView>()),
        conditional(Operation::of::<function::Remove>("DELETE", ONE, "removeFunction", "Removes a function", ""))
            .about("Pending inputs end as cancelled.")
            .empty(204, "removed"),
    ]
}

fn revisions() -> [Operation; 2] {
    let mut back = conditional(Operation::of::<function::Rollback>(
        "POST",
        "/v1/namespaces/{ns}/functions/{fn}/rollback",
        "rollbackFunction",
        "Deploys what an earlier revision was, as a new revision",
        "",
    ))
    .about("Without a body it is the one before. Dynamic autoscaler overrides are dropped.")
    .refuses(&[409])
    .query("force", json!({"type": "boolean", "default": false}), "take over at once")
    .query("wait_s", wait(), "answer when it has taken over, or with 409 deploy_failed")
    .takes(Shape::of::<super::shapes::WantedRevision>(), json!({"revision": 3}), SPEC_BYTES)
    .answers(200, "the function with its new revision", JSON, Shape::of::<function::FunctionView>());
    if let Some(body) = &mut back.body {
        body.required = false;
    }
    let list = Operation::of::<function::Revisions>(
        "GET",
        "/v1/namespaces/{ns}/functions/{fn}/revisions",
        "listRevisions",
        "The last revisions of a function: twenty, of large specs fewer",
        "the newest first",
    );
    [list, back]
}

/// A function, or with `dry_run` what would be one.
fn deployed() -> Shape {
    let (mut function, checked) = (Shape::of::<function::FunctionView>(), Shape::of::<function::CheckedView>());
    function.schema = json!({"anyOf": [function.schema, checked.schema]});
    function.named.extend(checked.named);
    function
}

/// Which part of the output is wanted, and how.
pub fn part_of_output(operation: Operation) -> Operation {
    let flag = || json!({"type": "boolean", "default": false});
    operation
        .query("follow", flag(), "go on as more comes")
        .query("timestamps", flag(), "each line begins with when it came")
        .query("tail", json!({"type": "integer", "minimum": 0}), "the last lines of what there is, and what follows")
        .query("since", json!({"type": "string"}), "what came since then: an RFC 3339 time, or seconds back")
        .answers(200, "lines of text", "text/plain", Shape::text())
}

fn looks() -> [Operation; 5] {
    [
        part_of_output(Operation::of::<function::Logs>(
            "GET",
            "/v1/namespaces/{ns}/functions/{fn}/logs",
            "getFunctionLogs",
            "What a function's containers wrote, each line with its container",
            "",
        ))
        .about(
            "Also of containers that have ended: at least ten minutes and 256 KiB of each, as long as there is room.",
        ),
        Operation::of::<function::GetStats>(
            "GET",
            "/v1/namespaces/{ns}/functions/{fn}/stats",
            "getStats",
            "Numbers of now",
            "backlog, running inputs and containers",
        ),
        Operation::of::<function::Explain>(
            "GET",
            "/v1/namespaces/{ns}/functions/{fn}/explain",
            "explainFunction",
            "The latest scale decisions, newest first, and why inputs wait",
            "decisions with the numbers behind them",
        ),
        Operation::of::<function::Instances>(
            "GET",
            "/v1/namespaces/{ns}/functions/{fn}/instances",
            "listInstances",
            "Instances of a function with parameters that are in use",
            "by name",
        ),
        Operation::of::<function::Trace>(
            "GET",
            "/v1/namespaces/{ns}/functions/{fn}/trace",
            "getTrace",
            "Recorded traffic of ended calls, one line an input, for what-if",
            "",
        )
        .answers(200, "lines with `at` (seconds since 1970) and `run_ms`", NDJSON, Shape::lines::<TraceLine>()),
    ]
}

fn autoscaler() -> [Operation; 3] {
    [
        Operation::of::<function::Settings>(
            "GET",
            AUTOSCALER,
            "getAutoscaler",
            "Deployed, overriding and effective settings",
            "settings by where they come from",
        ),
        conditional(Operation::of::<function::Patch>(
            "PATCH",
            AUTOSCALER,
            "patchAutoscaler",
            "Changes settings while the function runs",
            "the complete settings",
        ))
        .about("A JSON merge patch of overrides: an absent field keeps what is, null drops an override. It takes effect at once, survives restarts, and is dropped by the next deploy.")
        .takes(Shape::of::<OverridesPatch>(), json!({"min_containers": 2, "max_containers": null}), SPEC_BYTES),
        Operation::of::<function::Scaling>(
            "GET",
            "/v1/namespaces/{ns}/functions/{fn}/scaling",
            "getScaling",
            "Numbers for autoscalers outside, such as KEDA's metrics-api trigger (valueLocation: desired)",
            "numbers",
        ),
    ]
}

fn schedules() -> [Operation; 4] {
    [
        Operation::of::<function::Schedule>(
            "GET",
            "/v1/namespaces/{ns}/functions/{fn}/schedule",
            "getSchedule",
            "A function's schedule, its last and its next times",
            "the schedule",
        ),
        Operation::of::<function::PauseSchedule>(
            "POST",
            "/v1/namespaces/{ns}/functions/{fn}/schedule/pause",
            "pauseSchedule",
            "Pauses a schedule; what is due meanwhile is left out",
            "the schedule",
        ),
        Operation::of::<function::PauseSchedule>(
            "POST",
            "/v1/namespaces/{ns}/functions/{fn}/schedule/resume",
            "resumeSchedule",
            "Lets a schedule go on",
            "the schedule",
        ),
        Operation::of::<function::RunSchedule>(
            "POST",
            "/v1/namespaces/{ns}/functions/{fn}/schedule/run",
            "runSchedule",
            "Runs the schedule's input now",
            "the call",
        )
        .status(202),
    ]
}

/// The same for every method; a function's server knows its own.
fn web() -> impl Iterator<Item = Operation> {
    let methods =
        [("GET", "webGet"), ("PUT", "webPut"), ("POST", "webPost"), ("PATCH", "webPatch"), ("DELETE", "webDelete")];
    methods.into_iter().map(|(method, id)| {
        let rights = (Role::Invoke, Scope::Namespace);
        let passed =
            Operation::plain(method, WEB, id, "Passes a request on to a container of an http function", rights)
                .about("Whatever the method; WebSockets too. Each request counts as one input for the autoscaler.")
                .refuses(&[400, 502, 504]);
        let mut passed = match method {
            "GET" | "DELETE" => passed,
            _ => passed.takes_as("*/*", Shape::plain(json!({})), None, None),
        };
        if let Some(body) = &mut passed.body {
            body.required = false;
        }
        passed.answers(0, "what the container answers, streamed as it comes", "*/*", Shape::plain(json!({})))
    })
}
