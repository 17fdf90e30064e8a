//! Calls: made, looked at, read, cancelled.

use super::{
    operation::{JSON, NDJSON, Operation, Scope},
    shape::Shape,
    shapes::{ResultLine, SpawnedMap},
    tagged,
};
use capstan_verb::{Verb, access::Role, call};
use serde_json::json;

/// Bytes of an input or an output, by default.
const PAYLOAD_BYTES: usize = 16 << 20;

/// Something that brings inputs.
fn brings(operation: Operation) -> Operation {
    operation
        .header("traceparent", json!({"type": "string"}), "W3C trace context, continued into the container")
        .refuses(&[409])
}

fn repeatable(operation: Operation) -> Operation {
    let schema = json!({"type": "string", "minLength": 1, "maxLength": 255});
    operation.header(
        "Idempotency-Key",
        schema,
        "the same key and body within 24 h give the first answer; another body is 409",
    )
}

fn streamed(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    brings(Operation::plain("POST", path, id, summary, (Role::Invoke, Scope::Namespace)))
}

fn one_input<V: Verb>(path: &'static str, id: &'static str, summary: &'static str, answer: &'static str) -> Operation {
    repeatable(brings(Operation::of::<V>("POST", path, id, summary, answer))).takes(
        Shape::any(),
        json!({"text": "hello"}),
        PAYLOAD_BYTES,
    )
}

fn makes() -> [Operation; 4] {
    let lines =
        || Shape::plain(json!({"type": "string", "description": "NDJSON: one JSON value a line, each an input"}));
    [
        one_input::<call::Invoke>(
            "/v1/namespaces/{ns}/functions/{fn}/invoke",
            "invoke",
            "One input; waits for its output",
            "",
        )
        .about("The header Capstan-Call-Id of the answer names the call, also when the function failed.")
        .answers(200, "the output", JSON, Shape::any())
        .refuses(&[502, 504]),
        one_input::<call::Spawn>(
            "/v1/namespaces/{ns}/functions/{fn}/spawn",
            "spawn",
            "One input; answers once it is durable",
            "accepted",
        )
        .status(202),
        repeatable(streamed(
            "/v1/namespaces/{ns}/functions/{fn}/spawn_map",
            "spawnMap",
            "Many inputs; answers once all are durable",
        ))
        .about("All or nothing.")
        .takes_as(NDJSON, lines(), Some(json!("1\n2\n3\n")), PAYLOAD_BYTES)
        .answers(202, "accepted", JSON, Shape::of::<SpawnedMap>()),
        streamed("/v1/namespaces/{ns}/functions/{fn}/map", "map", "Inputs in, outputs out while they end")
            .about("Both sides stream. A client that goes away cancels what has not started.")
            .query("ordered", json!({"type": "boolean", "default": true}), "outputs in the order of the inputs")
            .query(
                "on_error",
                json!({"type": "string", "enum": ["raise", "collect"], "default": "raise"}),
                "raise ends the stream at the first error and cancels the rest",
            )
            .query(
                "outputs",
                json!({"type": "boolean", "default": true}),
                "false: only the last line {\"done\":true,\"succeeded\":n,\"failed\":n}",
            )
            .takes_as(NDJSON, lines(), Some(json!("1\n2\n3\n")), PAYLOAD_BYTES)
            .answers(
                200,
                "lines as inputs end; an error of the stream itself is a last line without index",
                NDJSON,
                Shape::lines::<ResultLine>(),
            ),
    ]
}

fn looks() -> [Operation; 7] {
    let states = || json!({"type": "string", "enum": ["pending", "running", "succeeded", "failed", "cancelled"]});
    [
        Operation::of::<call::List>("GET", "/v1/calls", "listCalls", "Lists calls, newest first", "a page of calls")
            .query("namespace", json!({"type": "string"}), "of functions of this namespace")
            .query("function", json!({"type": "string"}), "of functions of this name")
            .query("state", states(), "in this state")
            .paged(100, 1000),
        Operation::of::<call::Get>("GET", "/v1/calls/{id}", "getCall", "A call", "the call"),
        Operation::of::<call::Results>(
            "GET",
            "/v1/calls/{id}/results",
            "getResults",
            "Results, one a line, each with its cursor",
            "",
        )
        .about("Kept 7 days after the call ends, by default.")
        .query("after", json!({"type": "string"}), "a line's cursor")
        .query("limit", json!({"type": "integer", "minimum": 1, "default": 1000, "x-cut-at": 10000}), "lines, at most")
        .query("ordered", json!({"type": "boolean", "default": true}), "by index; false: as they ended")
        .query(
            "wait_s",
            json!({"type": "number", "minimum": 0, "default": 0, "x-cut-at": 60}),
            "waits so long for the first line",
        )
        .answers(200, "lines", NDJSON, Shape::lines::<ResultLine>()),
        Operation::of::<call::Inputs>(
            "GET",
            "/v1/calls/{id}/inputs",
            "listInputs",
            "The inputs of a call",
            "a page of inputs",
        )
        .about("A page may be shorter than asked for, or empty, and have a `next`: so many inputs were looked at.")
        .query("state", states(), "in this state")
        .query("after", json!({"type": "integer", "minimum": 0}), "the `next` of the page before")
        .query(
            "limit",
            json!({"type": "integer", "minimum": 1, "default": 100, "x-cut-at": 1000}),
            "inputs, at most",
        ),
        Operation::of::<call::Summarize>(
            "GET",
            "/v1/calls/{id}/summary",
            "summarizeCall",
            "How a call went: queue and run times, and its failures by type and message",
            "numbers",
        ),
        Operation::of::<call::Cancel>(
            "POST",
            "/v1/calls/{id}/cancel",
            "cancelCall",
            "Cancels what waits, stops what runs; idempotent",
            "the call",
        ),
        Operation::of::<call::ExplainInput>(
            "GET",
            "/v1/calls/{id}/inputs/{index}/explain",
            "explainInput",
            "The life of one input: each state with its time and, while it waits, why",
            "its life",
        ),
    ]
}

pub fn operations() -> Vec<Operation> {
    tagged("calls", makes().into_iter().chain(looks()))
}
