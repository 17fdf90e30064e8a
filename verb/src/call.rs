//! Calls: where they stand, and the life of their inputs.

use crate::{
    cursor::Cursor,
    payload::{self, Input},
};
use capstan_common::{
    call::{CallState, Counts},
    id::{CallId, ContainerId, FunctionKey, WorkerId},
    input::{Failure, Outcome},
    stats::Waiting,
    trace,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::{Value, json};
use std::{borrow::Cow, sync::Arc};
use utoipa::ToSchema;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Which.
    pub call: CallId,
}

/// The life of one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainInput {
    /// Of which call.
    pub call: CallId,
    /// Its place there.
    pub index: u64,
}

/// Ends a call: what waits does not run, and what runs is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which.
    pub call: CallId,
}

/// What comes with inputs besides their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// W3C trace context: the `traceparent`, and behind a space the `tracestate`.
    #[serde(default, deserialize_with = "traceparent")]
    pub traceparent: Option<String>,
    /// The client's idempotency key.
    #[serde(default, deserialize_with = "key")]
    pub key: Option<String>,
}

/// The longest idempotency key, in characters.
pub const KEY_CHARS: usize = 255;

/// A context that is none is left out, as its specification asks.
fn traceparent<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let written = Option::<String>::deserialize(d)?;
    Ok(written.and_then(|context| trace::context(trace::parent_of(&context), trace::state_of(&context))))
}

fn key<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let key = Option::<String>::deserialize(d)?;
    match key {
        Some(key) if key.is_empty() || key.chars().count() > KEY_CHARS => {
            Err(D::Error::custom(format!("an idempotency key has 1 to {KEY_CHARS} characters")))
        }
        key => Ok(key),
    }
}

/// Brings one input, and waits for its end. Whoever stops waiting cancels it if it has not started, unless it has a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoke {
    /// Which function or instance runs it.
    #[serde(deserialize_with = "crate::function::instance")]
    pub key: FunctionKey,
    /// What comes with it.
    #[serde(default)]
    pub terms: Terms,
    /// What it gets.
    pub input: Input,
}

/// Brings one input; it is durable when that is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Which function or instance runs it.
    #[serde(deserialize_with = "crate::function::instance")]
    pub key: FunctionKey,
    /// What comes with it.
    #[serde(default)]
    pub terms: Terms,
    /// What it gets.
    pub input: Input,
}

/// How inputs of a call ended, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Results {
    /// Of which call.
    pub call: CallId,
    /// The page begins here; with the first, if it is not said.
    #[serde(default)]
    pub after: Option<Cursor>,
    /// Lines in the page, at most.
    pub limit: usize,
    /// By the order of the inputs; else by that of their ends.
    pub ordered: bool,
    /// So many milliseconds are waited for the first line.
    #[serde(default)]
    pub wait_ms: u64,
}

/// Inputs of a call, page by page, by index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Of which call.
    pub call: CallId,
    /// In this state.
    #[serde(default)]
    pub state: Option<InputState>,
    /// The page begins behind this index.
    #[serde(default)]
    pub after: Option<u64>,
    /// Inputs in the page, at most.
    pub limit: usize,
}

/// How a call's inputs went, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summarize {
    /// Of which call.
    pub call: CallId,
}

/// Where an input stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputState {
    /// It waits, for a container or for a retry.
    Pending,
    /// A container has it.
    Running,
    /// It ended with an output.
    Succeeded,
    /// It ended with an error.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// A page of inputs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Inputs)]
pub struct InputsView {
    /// By index.
    pub inputs: Vec<InputView>,
    /// Behind which index the next page begins, if there may be more. A page may be empty and have one: so many were looked at.
    pub next: Option<u64>,
}

/// An input as a list shows it; `explain` tells its life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = InputItem)]
pub struct InputView {
    /// Its place in the call, from 0.
    pub index: u64,
    /// Where it stands.
    pub state: InputState,
    /// Attempts that have begun; null of those that wait.
    pub attempts: Option<u32>,
    /// Where it runs, or where it last ran.
    #[schema(value_type = Option<String>)]
    pub container: Option<ContainerId>,
    /// How long its last attempt ran, once it has ended.
    pub run_ms: Option<f64>,
    /// When it ended.
    #[schema(format = DateTime)]
    pub finished_at: Option<String>,
    /// How it failed, if it did.
    pub error: Option<Value>,
}

/// How a call's inputs went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Summary)]
pub struct SummaryView {
    /// Where its inputs are.
    pub inputs: Counts,
    /// How long inputs waited, from their arrival to their last attempt.
    pub queue: SpreadView,
    /// How long their last attempts ran.
    pub run: SpreadView,
    /// Inputs that failed, by type and message, the most frequent first.
    pub failures: Vec<FailuresView>,
    /// Failed inputs of further types and messages, which are not told one by one.
    pub other_failures: u64,
}

/// How durations are spread; all in milliseconds, to within two per cent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Spread)]
pub struct SpreadView {
    /// Of how many inputs.
    pub count: u64,
    /// Half are shorter.
    pub p50_ms: f64,
    /// Nine of ten are shorter.
    pub p90_ms: f64,
    /// Ninety-nine of a hundred are shorter.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// How many lie between one bound and the next.
    pub buckets: Vec<BucketView>,
}

/// Durations up to a bound and above the one before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Bucket)]
pub struct BucketView {
    /// The bound in milliseconds; null: without one.
    pub le_ms: Option<f64>,
    /// How many.
    pub count: u64,
}

/// Inputs that failed alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Failures)]
pub struct FailuresView {
    /// The stable code, like `function_failed`.
    pub code: String,
    /// The error's type.
    #[serde(rename = "type")]
    pub error_type: String,
    /// What it says; the beginning of it.
    pub message: String,
    /// How many.
    pub count: u64,
    /// One of them: the first that ended.
    pub example_index: u64,
}

/// The one input of a call has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Ended)]
pub struct EndedView {
    /// Which call.
    #[schema(value_type = String)]
    pub call_id: CallId,
    /// How.
    #[schema(value_type = serde_json::Value)]
    #[serde(with = "payload")]
    pub outcome: Outcome,
}

/// A page of results.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Results)]
pub struct ResultsView {
    /// One for each input.
    pub lines: Vec<Line>,
}

/// How one input ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ResultsLine)]
pub struct Line {
    /// The input.
    pub index: u64,
    /// How.
    #[schema(value_type = serde_json::Value)]
    #[serde(with = "payload")]
    pub outcome: Outcome,
    /// Where the next page begins.
    #[schema(value_type = String)]
    pub cursor: Cursor,
}

/// An error as answers carry it.
pub fn error_json(failure: &Failure) -> Value {
    let traceback = (!failure.traceback.is_empty()).then_some(&failure.traceback);
    json!({"code": failure.kind.code(), "type": failure.error_type, "message": failure.message, "traceback": traceback})
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Spawned)]
pub struct SpawnedView {
    /// Its id.
    #[schema(value_type = String, example = "ca-019c3f1d2e3a7b4c8d5e6f708192a3b4")]
    pub call_id: CallId,
}

/// Calls, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Of functions of this namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Of functions of this name.
    #[serde(default)]
    pub function: Option<String>,
    /// In this state.
    #[serde(default)]
    pub state: Option<CallState>,
    /// Older than this one.
    #[serde(default)]
    pub after: Option<CallId>,
    /// Calls in the page, at most.
    pub limit: usize,
}

/// A call as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Call)]
pub struct CallView {
    /// Its id.
    #[schema(value_type = String, example = "ca-019c3f1d2e3a7b4c8d5e6f708192a3b4")]
    pub id: CallId,
    /// Its function's namespace.
    pub namespace: Arc<str>,
    /// Its function.
    pub function: Arc<str>,
    /// Where it stands.
    pub state: CallState,
    /// Where its inputs are.
    pub inputs: Counts,
    /// When it was accepted.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it ended.
    #[schema(format = DateTime)]
    pub finished_at: Option<String>,
    /// Until when its results are kept.
    #[schema(format = DateTime)]
    pub expires_at: Option<String>,
}

impl List {
    /// Whether a call is one of those that are asked for.
    pub fn takes(&self, call: &CallView) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        is(&self.namespace, &call.namespace)
            && is(&self.function, &call.function)
            && self.state.is_none_or(|state| state == call.state)
    }

    /// One page of what all schedulers have. One that looked at as many calls as it may tells where it stopped: nothing older is
    /// told of before it has been asked again.
    pub(crate) fn gather(&self, answers: Vec<CallsView>) -> Option<CallsView> {
        let stopped = answers.iter().filter_map(|page| page.next).max();
        let mut calls: Vec<_> = answers.into_iter().flat_map(|page| page.calls).collect();
        calls.sort_by_key(|call| std::cmp::Reverse(call.id));
        calls.dedup_by_key(|call| call.id);
        calls.retain(|call| stopped.is_none_or(|stopped| call.id >= stopped));
        if calls.len() > self.limit {
            calls.truncate(self.limit);
            let next = calls.last().map(|last| last.id);
            return Some(CallsView { calls, next });
        }
        Some(CallsView { calls, next: stopped })
    }
}

/// A page of calls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Calls)]
pub struct CallsView {
    /// The newest first.
    pub calls: Vec<CallView>,
    /// Behind which call the next page begins, if there is one.
    #[schema(value_type = Option<String>)]
    pub next: Option<CallId>,
}

/// The life of an input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InputLife {
    /// Of which call.
    #[schema(value_type = String, example = "ca-019c3f1d2e3a7b4c8d5e6f708192a3b4")]
    pub call_id: CallId,
    /// Its place there.
    pub index: u64,
    /// `pending`, `running`, `succeeded`, `failed` or `cancelled`.
    pub state: Cow<'static, str>,
    /// Attempts that have begun.
    pub attempts: u32,
    /// Where it runs, or where it last ran.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub container: Option<ContainerId>,
    /// On which worker it runs.
    #[serde(default)]
    pub worker: Option<WorkerId>,
    /// Its states so far.
    pub history: Vec<Step>,
    /// How long its last attempt ran, once it has ended.
    #[serde(default)]
    pub run_ms: Option<f64>,
    /// How it failed, if it did.
    #[serde(default)]
    pub error: Option<serde_json::Value>,
    /// Why it waits, if it does.
    pub waiting: Option<Waiting>,
}

/// A state that an input was in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = InputStep)]
pub struct Step {
    /// `pending`, `running`, `lost`, `attempt_failed`, `succeeded`, `failed` or `cancelled`.
    pub state: Cow<'static, str>,
    /// Since when.
    #[schema(format = DateTime)]
    pub at: String,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub container: Option<ContainerId>,
    /// Why an attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(ids: &[u128], next: Option<u128>) -> CallsView {
        let call = |id: &u128| CallView {
            id: CallId(*id),
            namespace: "n".into(),
            function: "f".into(),
            state: CallState::Pending,
            inputs: Counts::default(),
            created_at: String::new(),
            finished_at: None,
            expires_at: None,
        };
        CallsView { calls: ids.iter().map(call).collect(), next: next.map(CallId) }
    }

    #[test]
    fn calls_of_several_schedulers_are_told_from_the_newest_on_and_none_is_left_out_between_pages() {
        let told = |limit, answers| {
            let list = List { namespace: None, function: None, state: None, after: None, limit };
            let page = list.gather(answers).unwrap();
            (page.calls.iter().map(|call| call.id.0).collect::<Vec<_>>(), page.next.map(|id| id.0))
        };
        assert_eq!(told(9, vec![page(&[7, 3], None), page(&[8, 2], None)]), (vec![8, 7, 3, 2], None));
        assert_eq!(told(2, vec![page(&[7, 3], Some(3)), page(&[8, 2], None)]), (vec![8, 7], Some(7)));
        // One has looked no further than 5: what the other has beyond that comes with the next page.
        assert_eq!(told(4, vec![page(&[9, 6], Some(5)), page(&[8, 2], None)]), (vec![9, 8, 6], Some(5)));
        assert_eq!(told(9, vec![page(&[7], None), page(&[7], None)]), (vec![7], None));
    }
}
