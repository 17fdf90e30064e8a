//! Functions: looked at, listed, explained.

use crate::log::Part;
use capstan_common::{
    function::{AutoscalerSettings, FunctionSpec, Overrides, OverridesPatch},
    id::{CallId, FunctionKey},
    resource::Amount,
    schedule,
    stats::{Facts, Stats, Waiting},
    validate,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::{borrow::Cow, sync::Arc};
use utoipa::ToSchema;

/// A function's name, as it may be: what comes from outside is looked at before anything is done with it.
fn function<'de, D: Deserializer<'de>>(d: D) -> Result<FunctionKey, D::Error> {
    let FunctionKey { namespace, name } = FunctionKey::deserialize(d)?;
    validate::function_key(&namespace, &name).map_err(|refusal| D::Error::custom(refusal.detail))
}

/// The same, of a function or of an instance of one.
pub(crate) fn instance<'de, D: Deserializer<'de>>(d: D) -> Result<FunctionKey, D::Error> {
    let FunctionKey { namespace, name } = FunctionKey::deserialize(d)?;
    validate::instance_key(&namespace, &name).map_err(|refusal| D::Error::custom(refusal.detail))
}

/// Verbs about one function or instance, which differ in their answer alone.
macro_rules! of_a_function {
    ($($(#[$doc:meta])* $verb:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $verb {
            /// Which function, or which instance of one.
            #[serde(deserialize_with = "instance")]
            pub key: FunctionKey,
        }
    )*};
}

of_a_function! {
    /// A function.
    Get;
    /// Its autoscaler settings.
    Settings;
    /// Its numbers.
    GetStats;
    /// Its latest scale decisions, and why inputs wait.
    Explain;
    /// Its instances.
    Instances;
    /// The numbers that a scaler reads.
    Scaling;
    /// Its schedule.
    Schedule;
    /// Its revisions.
    Revisions;
}

/// What a function's containers wrote, also those that have ended lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// Which function or instance.
    #[serde(deserialize_with = "instance")]
    pub key: FunctionKey,
    /// Which part of it.
    #[serde(default)]
    pub part: Part,
}

/// What was recorded of a function's inputs, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Which function or instance.
    #[serde(deserialize_with = "instance")]
    pub key: FunctionKey,
    /// The page begins behind this call.
    #[serde(default)]
    pub after: Option<CallId>,
}

/// Recorded traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TracePage)]
pub struct TraceView {
    /// Lines of JSON: first those of ended calls, the oldest first, then the latest web requests and starts.
    pub lines: String,
    /// Behind which call the next page begins, if there is one.
    #[schema(value_type = Option<String>)]
    pub next: Option<CallId>,
}

/// Deploys a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deploy {
    /// Which function.
    #[serde(deserialize_with = "function")]
    pub key: FunctionKey,
    /// What it runs.
    pub spec: FunctionSpec,
    /// What must be live before.
    #[serde(default)]
    pub before: Precondition,
    /// Whether it takes over at once, and not when its first container is ready.
    #[serde(default)]
    pub at_once: bool,
    /// Whether it is refused where no worker could ever hold a container of it.
    #[serde(default)]
    pub require_capacity: bool,
}

/// Waits until a revision serves, or has failed to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitDeployed {
    /// Of which function.
    #[serde(deserialize_with = "function")]
    pub key: FunctionKey,
    /// Which revision.
    pub revision: u32,
    /// After so many milliseconds it is answered all the same.
    pub wait_ms: u64,
}

/// How far a deployment has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Rollout)]
pub struct RolloutView {
    /// The revision that was deployed last.
    pub revision: u32,
    /// The one that serves.
    pub live_revision: u32,
    /// Starts of the new one that failed in a row.
    pub failed_starts: u32,
    /// Whether those are as many as are taken for a failed deployment. It goes on being tried; the one before goes on serving.
    pub has_failed: bool,
    /// How the last of them failed, with the container's output.
    pub detail: Option<String>,
}

/// Says whether a spec could be deployed, and deploys nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// As which function.
    #[serde(deserialize_with = "function")]
    pub key: FunctionKey,
    /// What it would run.
    pub spec: FunctionSpec,
    /// What must be live before.
    #[serde(default)]
    pub before: Precondition,
}

/// Deploys what an earlier revision was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Which function.
    #[serde(deserialize_with = "function")]
    pub key: FunctionKey,
    /// Which revision; the one before the latest, if it is not said.
    #[serde(default)]
    pub revision: Option<u32>,
    /// What must be live before.
    #[serde(default)]
    pub before: Precondition,
    /// Whether it takes over at once.
    #[serde(default)]
    pub at_once: bool,
}

/// The revisions of a function that are kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Revisions)]
pub struct RevisionsView {
    /// The newest first.
    pub revisions: Vec<RevisionView>,
}

/// A revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = FunctionRevision)]
pub struct RevisionView {
    /// Its number.
    pub revision: u32,
    /// When it was deployed.
    #[schema(format = DateTime)]
    pub deployed_at: String,
    /// Whether it is the live one.
    pub live: bool,
    /// Its spec.
    pub spec: Arc<FunctionSpec>,
}

/// Changes a function's dynamic settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Which function; an instance is made if it is not there.
    #[serde(deserialize_with = "instance")]
    pub key: FunctionKey,
    /// What changes.
    pub patch: OverridesPatch,
    /// What must be live before.
    #[serde(default)]
    pub before: Precondition,
}

/// Removes a function; what waits ends as cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remove {
    /// Which function or instance.
    #[serde(deserialize_with = "instance")]
    pub key: FunctionKey,
    /// What must be live before.
    #[serde(default)]
    pub before: Precondition,
}

/// Pauses a schedule, or lets it go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseSchedule {
    /// Of which function.
    #[serde(deserialize_with = "function")]
    pub key: FunctionKey,
    /// Whether it pauses from now on.
    pub paused: bool,
}

/// Runs a schedule's input now, whatever its times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSchedule {
    /// Of which function.
    #[serde(deserialize_with = "function")]
    pub key: FunctionKey,
}

/// What must be live before something is done; nothing, if nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precondition {
    /// The function must not be there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
    /// It must be there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub present: bool,
    /// One of these revisions must be live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_of: Option<Vec<u32>>,
}

impl Precondition {
    /// What is wrong with what is live, if anything is.
    pub fn broken(&self, live: Option<u32>) -> Option<String> {
        match (live, &self.one_of) {
            (Some(live), _) if self.absent => Some(format!("the function exists, revision {live} is live")),
            (None, one_of) if self.present || one_of.is_some() => Some("the function does not exist".into()),
            (Some(live), Some(wanted)) if !wanted.contains(&live) => {
                let wanted: Vec<String> = wanted.iter().map(|revision| format!("\"{revision}\"")).collect();
                let wanted = if wanted.is_empty() { "no revision".into() } else { wanted.join(", ") };
                Some(format!("If-Match expects {wanted}, revision {live} is live"))
            }
            _ => None,
        }
    }
}

/// Waits until a function is active, or is not any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitActive {
    /// Which function.
    #[serde(deserialize_with = "instance")]
    pub key: FunctionKey,
    /// What is known already: anything else is answered at once.
    #[serde(default)]
    pub known: Option<bool>,
    /// After so many milliseconds it is answered all the same.
    pub wait_ms: u64,
}

/// Whether a function wants containers, or has inputs that wait or run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Active)]
pub struct ActiveView {
    /// Whether it is.
    pub active: bool,
}

/// How many nodes hold what a function wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredNodes {
    /// Which function.
    #[serde(deserialize_with = "instance")]
    pub key: FunctionKey,
    /// How large a node is; as the largest worker, if it is not said.
    #[serde(default)]
    pub node: Option<Amount>,
}

/// A revision that was deployed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Deployed)]
pub struct DeployedView {
    /// The function.
    pub function: FunctionView,
    /// Whether there was none of its name.
    pub new: bool,
}

/// A spec that could be deployed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Checked)]
pub struct CheckedView {
    /// True: nothing was deployed.
    pub dry_run: bool,
    /// As it would be deployed.
    pub spec: FunctionSpec,
    /// What is odd about it.
    pub warnings: Vec<String>,
}

/// Functions of a namespace, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Which namespace.
    pub namespace: String,
    /// The page begins behind this name.
    #[serde(default)]
    pub after: Option<String>,
    /// Functions in the page, at most.
    pub limit: usize,
}

/// A function as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Function)]
pub struct FunctionView {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The revision that was deployed last.
    pub revision: u32,
    /// The one that serves: where a server is ready, a new revision takes over when its first container is.
    #[serde(default)]
    pub live_revision: u32,
    /// When the latest was deployed.
    #[schema(format = DateTime)]
    pub deployed_at: String,
    /// Its spec.
    pub spec: Arc<FunctionSpec>,
    /// Numbers of now.
    pub stats: Stats,
    /// What of the request should be written otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A page of functions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Functions)]
pub struct FunctionsView {
    /// By name.
    pub functions: Vec<FunctionView>,
    /// Behind which name the next page begins, if there is one.
    pub next: Option<Arc<str>>,
}

impl List {
    /// One page of what all schedulers have. Each has told at most a page of its own: a full one may have more behind it.
    pub(crate) fn gather(&self, answers: Vec<FunctionsView>) -> Option<FunctionsView> {
        let mut more = answers.iter().any(|page| page.next.is_some());
        let mut functions: Vec<_> = answers.into_iter().flat_map(|page| page.functions).collect();
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        functions.dedup_by(|a, b| a.name == b.name);
        more |= functions.len() > self.limit;
        functions.truncate(self.limit);
        let next = functions.last().filter(|_| more).map(|last| last.name.clone());
        Some(FunctionsView { functions, next })
    }
}

/// Settings by where they come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Settings)]
pub struct SettingsView {
    /// As deployed.
    pub deployed: AutoscalerSettings,
    /// Laid over it.
    pub overrides: Overrides,
    /// Names of the profiles that hold now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// What holds.
    pub effective: AutoscalerSettings,
    /// What of the request should be written otherwise, and what of it will not hold while a profile does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The latest decisions, and why inputs wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Explain)]
pub struct ExplainView {
    /// Newest first.
    pub decisions: Vec<DecisionView>,
    /// For a function with a model: whether it may be scaled to zero, which entry says so, and its last request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_to_zero: Option<ScaleToZeroView>,
    /// A deployment that has not taken over yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutView>,
    /// Why pending inputs wait; null while none does.
    pub waiting: Option<Waiting>,
    /// Numbers of now.
    pub stats: Stats,
}

/// A scale decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Decision)]
pub struct DecisionView {
    /// When.
    #[schema(format = DateTime)]
    pub at: String,
    /// Containers wanted before.
    pub from: u32,
    /// Containers wanted from then on.
    pub to: u32,
    /// Why.
    pub reason: Cow<'static, str>,
    /// The numbers behind it.
    pub facts: Facts,
}

/// What the scale-to-zero configuration says of a function's model, and what keeps its last container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ScaleToZeroFacts)]
pub struct ScaleToZeroView {
    /// Whether it may be scaled to zero.
    pub enable_scale_to_zero: bool,
    /// How long after the last request.
    pub retention_s: f64,
    /// Which entries decided.
    pub decided_by: DecidedBy,
    /// When the last request was, as far as is known.
    #[schema(format = DateTime)]
    pub last_request: String,
    /// What keeps a container now, if anything does.
    pub kept_by: Option<Cow<'static, str>>,
}

/// Entries of the scale-to-zero configuration, by what they decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecidedBy {
    /// The flag.
    pub enable_scale_to_zero: Arc<str>,
    /// The retention.
    pub retention_period: Arc<str>,
}

/// A function's instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Instances)]
pub struct InstancesView {
    /// By name.
    pub instances: Vec<FunctionView>,
}

/// The numbers that a scaler reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Scaling)]
pub struct ScalingView {
    /// Containers wanted.
    pub desired: u32,
    /// Containers that exist and take, or will take, inputs.
    pub current: u32,
    /// Inputs that wait.
    pub backlog: u64,
    /// Inputs held by containers.
    pub running: u64,
}

/// A function's schedule, and where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ScheduleState)]
pub struct ScheduleView {
    /// As deployed.
    pub schedule: schedule::Schedule,
    /// Whether it is paused.
    pub paused: bool,
    /// The last due time that was seen to.
    #[schema(format = DateTime)]
    pub last: Option<String>,
    /// The next due times; none while it is paused.
    pub next: Vec<String>,
    /// Runs that wait for an earlier one to end.
    pub waiting: usize,
    /// Calls that it made and that have not ended.
    #[schema(value_type = Vec<String>)]
    pub running: Vec<CallId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_function_can_have_is_not_read() {
        let asked = |verb: fn(&str) -> bool, namespace: &str, name: &str| {
            verb(&serde_json::json!({"key": {"namespace": namespace, "name": name}, "paused": true}).to_string())
        };
        let get = |json: &str| serde_json::from_str::<Get>(json).is_ok();
        let pause = |json: &str| serde_json::from_str::<PauseSchedule>(json).is_ok();
        assert!(asked(get, "default", "a.f") && asked(pause, "default", "a.f"));
        // An instance can be looked at, and has no schedule of its own.
        assert!(asked(get, "default", "f;x=1") && !asked(pause, "default", "f;x=1"));
        for (namespace, name) in
            [("default", "a/b"), ("default", "a\0b"), ("de/fault", "f"), ("", "f"), ("default", "")]
        {
            assert!(!asked(get, namespace, name) && !asked(pause, namespace, name), "{namespace} {name}");
        }
    }

    #[test]
    fn what_must_be_live_is_held_against_what_is() {
        let nothing = Precondition::default();
        let absent = Precondition { absent: true, ..nothing.clone() };
        let present = Precondition { present: true, ..nothing.clone() };
        let one_of = |revisions: &[u32]| Precondition { one_of: Some(revisions.into()), ..nothing.clone() };
        for (before, live, broken) in [
            (nothing.clone(), None, false),
            (nothing.clone(), Some(3), false),
            (absent.clone(), None, false),
            (absent, Some(3), true),
            (present.clone(), None, true),
            (present, Some(3), false),
            (one_of(&[2, 3]), Some(3), false),
            (one_of(&[2]), Some(3), true),
            (one_of(&[2]), None, true),
            // What names no revision matches none.
            (one_of(&[]), Some(3), true),
        ] {
            assert_eq!(before.broken(live).is_some(), broken, "{before:?} {live:?}");
        }
    }

    #[test]
    fn a_patch_says_the_same_on_its_way_to_another_scheduler() {
        // SPEC D07 D08: absent keeps, null drops.
        for written in [r#"{}"#, r#"{"min_containers":null}"#, r#"{"max_containers":3,"scaledown_window":null}"#] {
            let patch: OverridesPatch = serde_json::from_str(written).unwrap();
            let again: OverridesPatch = serde_json::from_str(&serde_json::to_string(&patch).unwrap()).unwrap();
            assert_eq!(again, patch, "{written}");
        }
    }

    #[test]
    fn pages_of_several_schedulers_are_one_page_in_order_and_the_next_begins_behind_its_last() {
        let spec: FunctionSpec = serde_json::from_str(r#"{"runtime":{"process":{"command":["true"]}}}"#).unwrap();
        let view = |name: &str| FunctionView {
            namespace: "n".into(),
            name: name.into(),
            revision: 1,
            live_revision: 1,
            deployed_at: String::new(),
            spec: Arc::new(spec.clone()),
            stats: Stats::default(),
            warnings: Vec::new(),
        };
        let page = |names: &[&str], next: Option<&str>| FunctionsView {
            functions: names.iter().map(|name| view(name)).collect(),
            next: next.map(Into::into),
        };
        let told = |limit, answers| {
            let list = List { namespace: "n".into(), after: None, limit };
            let page = list.gather(answers).unwrap();
            let names: Vec<String> = page.functions.iter().map(|f| f.name.to_string()).collect();
            (names.join(" "), page.next.map(|next| next.to_string()))
        };
        assert_eq!(told(3, vec![page(&["b", "d"], None), page(&["a"], None)]), ("a b d".into(), None));
        assert_eq!(
            told(2, vec![page(&["b", "d"], None), page(&["a", "c"], Some("c"))]),
            ("a b".into(), Some("b".into()))
        );
        assert_eq!(told(2, vec![page(&["b"], None), page(&["a", "c"], None)]), ("a b".into(), Some("b".into())));
        // One that changes hands is told of by both.
        assert_eq!(told(9, vec![page(&["a", "b"], None), page(&["b"], None)]), ("a b".into(), None));
        assert_eq!(told(9, vec![page(&[], None)]), (String::new(), None));
    }
}
