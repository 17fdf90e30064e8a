//! Checks of what users write; each answer names the field, the limit and the value.

use crate::{
    function::{AutoscalerSettings, FunctionSpec, OLDER_NAMES, Protocol, Runtime},
    gpu::{self, GpuRequest},
    id::FunctionKey,
    profile,
    refusal::{FieldError, Refusal},
};
use std::collections::BTreeMap;

/// Secrets that a function may name.
const MAX_SECRETS: usize = 64;
/// The longest time-out of an attempt: 24 hours (SPEC §2.1).
pub const MAX_TIMEOUT_S: u64 = 86_400;

/// Folders that no volume may cover.
const KERNELS: [&str; 3] = ["/dev", "/proc", "/sys"];

struct Findings(Vec<FieldError>);

impl Findings {
    fn check(&mut self, holds: bool, pointer: &str, detail: impl FnOnce() -> String) {
        if !holds {
            self.0.push(FieldError { pointer: pointer.into(), detail: detail() });
        }
    }
}

/// Checks a namespace and a function's name.
pub fn function_key(namespace: &str, name: &str) -> Result<FunctionKey, Refusal> {
    for (what, text) in [("namespace", namespace), ("function", name)] {
        if !is_name(text) {
            let shown: String = text.chars().take(160).collect();
            return Err(Refusal::field(
                what,
                format!("name `{shown}` must match [a-z0-9A-Z._-]{{1,128}}, and be neither `.` nor `..`"),
            ));
        }
    }
    Ok(FunctionKey::new(namespace, name))
}

fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Checks a namespace and the name of a function or of an instance of one.
pub fn instance_key(namespace: &str, name: &str) -> Result<FunctionKey, Refusal> {
    let base = name.split(crate::parameter::SEPARATOR).next().unwrap_or_default();
    function_key(namespace, base)?;
    Ok(FunctionKey::new(namespace, name))
}

/// Checks a whole spec (SPEC §2.1); all findings are told at once.
pub fn spec(spec: &FunctionSpec) -> Result<(), Refusal> {
    let mut findings = Findings(Vec::new());
    runtime(spec, &mut findings);
    limits(spec, &mut findings);
    inputs(spec, &mut findings);
    retries(spec, &mut findings);
    settings_into(&spec.autoscaler, "/autoscaler", &|_| Source::written(""), &mut findings);
    times(spec, &mut findings);
    activity(spec, &mut findings);
    volumes(spec, &mut findings);
    findings.0.extend(crate::parameter::check(spec));
    if findings.0.is_empty() { Ok(()) } else { Err(Refusal::fields(findings.0)) }
}

fn runtime(spec: &FunctionSpec, findings: &mut Findings) {
    match &spec.runtime {
        Runtime::Process(process) => {
            let program = process.command.first();
            findings.check(program.is_some_and(|p| !p.is_empty()), "/runtime/process/command", || {
                "must name a program, for example [\"python3\", \"handler.py\"]".into()
            });
            let clean = |text: &str| !text.contains('\0');
            findings.check(
                process.command.iter().all(|a| clean(a))
                    && process.env.iter().all(|(k, v)| clean(k) && clean(v))
                    && process.working_dir.as_deref().is_none_or(clean),
                "/runtime/process",
                || "no text in it may contain a NUL character".into(),
            );
            findings.check(
                process.env.keys().all(|k| !k.is_empty() && !k.contains('=')),
                "/runtime/process/env",
                || "a variable's name must not be empty or contain `=`".into(),
            );
        }
        Runtime::Container(_) => findings.check(false, "/runtime/container", || {
            "container images are not supported by this version; use {\"process\":{\"command\":[…]}}".into()
        }),
    }
    findings.check(spec.secrets.len() <= MAX_SECRETS, "/secrets", || {
        format!("must be at most {MAX_SECRETS} names, are {}", spec.secrets.len())
    });
}

fn limits(spec: &FunctionSpec, findings: &mut Findings) {
    for (pointer, value) in [("/timeout_s", spec.timeout_s), ("/startup_timeout_s", spec.startup_timeout_s)] {
        findings.check((1000..=MAX_TIMEOUT_S * 1000).contains(&value.ms), pointer, || {
            let seconds = value.ms as f64 / 1000.0;
            format!("must be from 1 to {MAX_TIMEOUT_S} seconds, is {seconds}")
        });
    }
    findings
        .check((1..=1000).contains(&spec.weight), "/weight", || format!("must be from 1 to 1000, is {}", spec.weight));
    let resources = &spec.resources;
    findings.check((1..=16 * 1024 * 1024).contains(&resources.memory_mib), "/resources/memory_mib", || {
        format!("must be from 1 to 16777216, is {}", resources.memory_mib)
    });
    if let Some(limit) = resources.cpu_limit {
        findings.check(limit >= resources.cpu, "/resources/cpu_limit", || {
            format!("must not be below cpu ({} < {} thousandths of a core)", limit.milli, resources.cpu.milli)
        });
    }
}

fn inputs(spec: &FunctionSpec, findings: &mut Findings) {
    let concurrency = &spec.concurrency;
    findings.check((1..=10_000).contains(&concurrency.max_inputs), "/concurrency/max_inputs", || {
        format!("must be from 1 to 10000, is {}", concurrency.max_inputs)
    });
    if let Some(target) = concurrency.target_inputs {
        findings.check((1..=concurrency.max_inputs).contains(&target), "/concurrency/target_inputs", || {
            format!("must be from 1 to max_inputs ({}), is {target}", concurrency.max_inputs)
        });
    }
    let exec = spec.protocol == Protocol::Exec;
    if let Some(batching) = &spec.batching {
        findings.check((1..=1000).contains(&batching.max_batch_size), "/batching/max_batch_size", || {
            format!("must be from 1 to 1000, is {}", batching.max_batch_size)
        });
        findings.check(batching.wait_ms <= 600_000, "/batching/wait_ms", || {
            format!("must be from 0 to 600000, is {}", batching.wait_ms)
        });
        findings.check(!exec, "/batching", || {
            "the exec protocol runs one process an input and cannot batch; use http".into()
        });
    }
    findings.check(!(spec.single_use_containers && concurrency.max_inputs > 1), "/single_use_containers", || {
        format!("excludes concurrency.max_inputs > 1 (is {})", concurrency.max_inputs)
    });
}

fn retries(spec: &FunctionSpec, findings: &mut Findings) {
    let retries = &spec.retries;
    findings.check(retries.max_retries <= 1000, "/retries/max_retries", || {
        format!("must be from 0 to 1000, is {}", retries.max_retries)
    });
    findings.check(retries.initial_delay_ms <= 60_000, "/retries/initial_delay_ms", || {
        format!("must be from 0 to 60000, is {}", retries.initial_delay_ms)
    });
    findings.check((1.0..=10.0).contains(&retries.backoff_coefficient), "/retries/backoff_coefficient", || {
        format!("must be from 1 to 10, is {}", retries.backoff_coefficient)
    });
    findings.check((1000..=60_000).contains(&retries.max_delay_ms), "/retries/max_delay_ms", || {
        format!("must be from 1000 to 60000, is {}", retries.max_delay_ms)
    });
}

/// Checks a schedule and profiles: every expression and every combination of settings that can come to hold.
fn times(spec: &FunctionSpec, findings: &mut Findings) {
    if let Some(schedule) = &spec.schedule {
        match (&schedule.cron, schedule.period_s) {
            (Some(_), Some(_)) => {
                findings.check(false, "/schedule", || "has both cron and period_s; give one of them".into())
            }
            (None, None) => findings.check(false, "/schedule", || "needs cron or period_s".into()),
            _ => {}
        }
        if let Some(cron) = &schedule.cron {
            readable(crate::schedule::cron(cron).map(drop), "/schedule/cron", findings);
        }
        readable(crate::schedule::timezone(schedule.timezone.as_deref()).map(drop), "/schedule/timezone", findings);
        findings.check(schedule.input.is_plain(), "/schedule/input", || {
            "has a number past 1e308, or half of a character (a lone surrogate)".into()
        });
        findings.check(schedule.period_s.is_none_or(|p| p.ms >= 1000), "/schedule/period_s", || {
            format!("must be at least 1 second, is {}", schedule.period_s.map_or(0.0, |p| p.ms as f64 / 1000.0))
        });
        findings.check(schedule.cron.is_some() || schedule.timezone.is_none(), "/schedule/timezone", || {
            "a period knows no time zone".into()
        });
    }
    for (n, profile) in spec.profiles.iter().enumerate() {
        let at = |field: &str| format!("/profiles/{n}/{field}");
        findings.check(!profile.name.is_empty(), &at("name"), || "must not be empty".into());
        readable(crate::schedule::cron(&profile.start).map(drop), &at("start"), findings);
        readable(crate::schedule::cron(&profile.end).map(drop), &at("end"), findings);
        readable(crate::schedule::timezone(profile.timezone.as_deref()).map(drop), &at("timezone"), findings);
        let source = |field: &str| match profile.autoscaler.sets(field) {
            true => Source::written(""),
            false => Source::elsewhere(" of the deployed settings"),
        };
        settings_into(&profile.autoscaler.over(&spec.autoscaler), &at("autoscaler"), &source, findings);
    }
}

/// What is asked of a spec that is deployed now, and was not always: those that are stored may be otherwise.
pub fn new_spec(spec: &FunctionSpec) -> Result<(), Refusal> {
    let mut findings = Findings(Vec::new());
    // How many there are comes first: what each of them says is looked at only if they are few.
    let (most, are) = (profile::MOST, spec.profiles.len());
    findings.check(are <= most, "/profiles", || format!("must be at most {most}, are {are}"));
    if !findings.0.is_empty() {
        return Err(Refusal::fields(findings.0));
    }
    findings.check(spec.model_id.as_deref() != Some(""), "/model_id", || "must not be empty; leave it out".into());
    let (wishes, most) = (spec.resources.gpu.len(), gpu::PREFERENCES);
    findings.check(wishes <= most, "/resources/gpu", || format!("must be at most {most} preferences, are {wishes}"));
    for (index, gpu) in spec.resources.gpu.iter().enumerate().take(most) {
        if let Err(why) = gpu.parse::<GpuRequest>() {
            findings.check(false, &format!("/resources/gpu/{index}"), || why);
        }
    }
    for (n, profile) in spec.profiles.iter().enumerate() {
        let same = spec.profiles[..n].iter().any(|earlier| earlier.name == profile.name);
        findings.check(!same, &format!("/profiles/{n}/name"), || format!("`{}` is there twice", profile.name));
        findings.check(profile.start != profile.end, &format!("/profiles/{n}/end"), || {
            format!("is `{}` like start: it would never hold", profile.end)
        });
    }
    if findings.0.is_empty() { Ok(()) } else { Err(Refusal::fields(findings.0)) }
}

/// Checks that profiles that hold at the same time do not contradict each other. This looks at a year: it is for whoever deploys,
/// once, and not for a function's own actor.
pub fn profiles(spec: &FunctionSpec) -> Result<(), Refusal> {
    profile::clash(spec).map_or(Ok(()), |clash| {
        Err(Refusal::field(&format!("profiles/{}/autoscaler/min_containers", clash.min), clash.detail))
    })
}

/// Checks how requests past Capstan are counted.
fn activity(spec: &FunctionSpec, findings: &mut Findings) {
    let Some(activity) = &spec.activity else { return };
    findings.check(activity.path.starts_with('/'), "/activity/path", || {
        format!("must begin with `/`, is `{}`", activity.path)
    });
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    findings.check(!activity.counter.is_empty() && activity.counter.chars().all(name), "/activity/counter", || {
        format!("must be the name of a counter, like vllm:request_success_total, is `{}`", activity.counter)
    });
    findings.check((1_000..=3_600_000).contains(&activity.interval_s.ms), "/activity/interval_s", || {
        format!("must be from 1 to 3600 seconds, is {}", activity.interval_s.ms as f64 / 1000.0)
    });
    findings.check(spec.protocol == Protocol::Http, "/activity", || {
        "only http functions have servers that others can reach; leave it out with the protocol exec".into()
    });
    findings.check(spec.model_id.is_some(), "/activity", || {
        "counts a model's requests and needs a model_id, which is not set".into()
    });
}

/// Checks where volumes are seen: at paths that are written in one way only, each volume at one of them (SPEC B22, §2.1).
fn volumes(spec: &FunctionSpec, findings: &mut Findings) {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (path, name) in &spec.volumes {
        let pointer = format!("/volumes/{}", path.replace('~', "~0").replace('/', "~1"));
        let mut parts = path.split('/');
        let plain =
            parts.next() == Some("") && parts.all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
        findings.check(plain, &pointer, || {
            format!("path `{path}` must be absolute, like /models, without `.`, `..`, or a `/` at its end")
        });
        let of_the_kernel = KERNELS
            .into_iter()
            .find(|kernels| path.strip_prefix(kernels).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
        findings.check(of_the_kernel.is_none(), &pointer, || {
            format!(
                "path `{path}` lies in {}, which is the kernel's; choose another",
                of_the_kernel.unwrap_or_default()
            )
        });
        findings.check(is_name(name), &pointer, || format!("volume `{name}` must match [a-z0-9A-Z._-]{{1,128}}"));
        if let Some(other) = seen.insert(name, path) {
            findings
                .check(false, &pointer, || format!("volume `{name}` is already at `{other}`; a function sees it once"));
        }
    }
}

fn readable(read: Result<(), String>, pointer: &str, findings: &mut Findings) {
    if let Err(detail) = read {
        findings.check(false, pointer, || detail);
    }
}

/// Where the value of a setting comes from.
pub struct Source {
    said: String,
    /// Whether that is what is being checked: only such a field can be pointed to.
    is_written: bool,
}

impl Source {
    /// From what is being checked.
    pub fn written(said: &str) -> Self {
        Self { said: said.into(), is_written: true }
    }

    /// From somewhere else.
    pub fn elsewhere(said: impl Into<String>) -> Self {
        Self { said: said.into(), is_written: false }
    }
}

/// Checks effective autoscaler settings; `source` tells where a field's value comes from.
pub fn settings(settings: &AutoscalerSettings, source: &dyn Fn(&str) -> Source) -> Result<(), Refusal> {
    let mut findings = Findings(Vec::new());
    settings_into(settings, "", source, &mut findings);
    if findings.0.is_empty() { Ok(()) } else { Err(Refusal::fields(findings.0)) }
}

/// Checks settings against the most containers that the system gives any function (SPEC D1).
pub fn within_system(settings: &AutoscalerSettings, prefix: &str, most: u32) -> Result<(), Refusal> {
    let mut findings = Findings(Vec::new());
    findings.check(settings.min_containers <= most, &format!("{prefix}/min_containers"), || {
        let min = settings.min_containers;
        format!("must not be above the system's most for a function (limits.system_max_containers={most}), is {min}")
    });
    if findings.0.is_empty() { Ok(()) } else { Err(Refusal::fields(findings.0)) }
}

fn settings_into(s: &AutoscalerSettings, prefix: &str, source: &dyn Fn(&str) -> Source, findings: &mut Findings) {
    const MOST: u32 = 1_000_000;
    let max = s.max_containers;
    if let Some(max) = max {
        findings.check((1..=MOST).contains(&max), &format!("{prefix}/max_containers"), || {
            format!("must be from 1 to {MOST}, is {max}")
        });
    }
    findings.check(s.min_containers <= MOST, &format!("{prefix}/min_containers"), || {
        format!("must be from 0 to {MOST}, is {}", s.min_containers)
    });
    if let Some(max) = max.filter(|max| s.min_containers <= MOST && s.min_containers > (*max).max(1)) {
        let (of_min, of_max) = (source("min_containers"), source("max_containers"));
        let (min, of) = (s.min_containers, (&of_min.said, &of_max.said));
        if of_max.is_written && !of_min.is_written {
            let below = || format!("must not be below min_containers ({max}{} < {min}{})", of.1, of.0);
            findings.check(false, &format!("{prefix}/max_containers"), below);
        } else {
            let above = || format!("must not be above max_containers ({min}{} > {max}{})", of.0, of.1);
            findings.check(false, &format!("{prefix}/min_containers"), above);
        }
    }
    findings.check(s.buffer_containers <= MOST, &format!("{prefix}/buffer_containers"), || {
        format!("must be from 0 to {MOST}, is {}", s.buffer_containers)
    });
    findings.check(s.scaledown_window >= 1, &format!("{prefix}/scaledown_window"), || {
        format!("must be at least 1 second, is {}", s.scaledown_window)
    });
}

/// What of a written spec or patch is taken under an older name, in sentences.
pub fn older_names(written: &serde_json::Value) -> Vec<String> {
    let own = written.get("autoscaler").unwrap_or(written);
    let of_profiles = written["profiles"].as_array().into_iter().flatten().map(|profile| &profile["autoscaler"]);
    let all: Vec<&serde_json::Value> = of_profiles.chain([own]).collect();
    let given = OLDER_NAMES.iter().filter(|(older, _)| all.iter().any(|settings| settings.get(older).is_some()));
    given.map(|(older, now)| format!("{older} is the older name of {now}; write {now}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(patch: &str) -> Vec<String> {
        let mut json: serde_json::Value =
            serde_json::from_str(r#"{"runtime":{"process":{"command":["true"]}}}"#).unwrap();
        let patch: serde_json::Value = serde_json::from_str(patch).unwrap();
        for (key, value) in patch.as_object().unwrap() {
            json[key] = value.clone();
        }
        let parsed: FunctionSpec = serde_json::from_value(json).unwrap();
        spec(&parsed)
            .and_then(|()| new_spec(&parsed))
            .err()
            .map_or(Vec::new(), |refusal| refusal.errors.into_iter().map(|e| e.pointer).collect())
    }

    #[test]
    fn each_wrong_value_is_named_by_its_pointer() {
        // SPEC B03 I03 J03 and section 2.1
        for (patch, pointer) in [
            (r#"{"autoscaler":{"min_containers":3,"max_containers":2}}"#, "/autoscaler/min_containers"),
            (r#"{"autoscaler":{"max_containers":0}}"#, "/autoscaler/max_containers"),
            (r#"{"autoscaler":{"scaledown_window":0}}"#, "/autoscaler/scaledown_window"),
            (r#"{"concurrency":{"max_inputs":0}}"#, "/concurrency/max_inputs"),
            (r#"{"concurrency":{"max_inputs":2,"target_inputs":3}}"#, "/concurrency/target_inputs"),
            (r#"{"batching":{"max_batch_size":0,"wait_ms":1}}"#, "/batching/max_batch_size"),
            (r#"{"batching":{"max_batch_size":1001,"wait_ms":1}}"#, "/batching/max_batch_size"),
            (r#"{"batching":{"max_batch_size":2,"wait_ms":600001}}"#, "/batching/wait_ms"),
            (r#"{"timeout_s":0.5}"#, "/timeout_s"),
            (r#"{"timeout_s":86401}"#, "/timeout_s"),
            (r#"{"startup_timeout_s":0}"#, "/startup_timeout_s"),
            (r#"{"retries":{"backoff_coefficient":0.9}}"#, "/retries/backoff_coefficient"),
            (r#"{"retries":{"initial_delay_ms":60001}}"#, "/retries/initial_delay_ms"),
            (r#"{"retries":{"max_delay_ms":999}}"#, "/retries/max_delay_ms"),
            (r#"{"resources":{"gpu":["H100:x"]}}"#, "/resources/gpu/0"),
            (r#"{"resources":{"gpu":["any","any","any","any","any","any","any","any","any"]}}"#, "/resources/gpu"),
            (r#"{"model_id":""}"#, "/model_id"),
            (r#"{"profiles":[{"name":"a","start":"0 6 * * *","end":"0 6 * * *","autoscaler":{}}]}"#, "/profiles/0/end"),
            (r#"{"resources":{"cpu":2,"cpu_limit":1}}"#, "/resources/cpu_limit"),
            (r#"{"runtime":{"process":{"command":[]}}}"#, "/runtime/process/command"),
            (r#"{"activity":{}}"#, "/activity"),
            (r#"{"model_id":"m","activity":{},"protocol":"exec"}"#, "/activity"),
            (r#"{"model_id":"m","activity":{"path":"metrics"}}"#, "/activity/path"),
            (r#"{"model_id":"m","activity":{"counter":"a b"}}"#, "/activity/counter"),
            (r#"{"model_id":"m","activity":{"interval_s":0.5}}"#, "/activity/interval_s"),
            (r#"{"volumes":{"models":"a"}}"#, "/volumes/models"),
            (r#"{"volumes":{"/":"a"}}"#, "/volumes/~1"),
            (r#"{"volumes":{"/a/../b":"a"}}"#, "/volumes/~1a~1..~1b"),
            (r#"{"volumes":{"/a/":"a"}}"#, "/volumes/~1a~1"),
            (r#"{"volumes":{"/proc/x":"a"}}"#, "/volumes/~1proc~1x"),
            (r#"{"volumes":{"/a":"b/c"}}"#, "/volumes/~1a"),
            (r#"{"volumes":{"/a":".."}}"#, "/volumes/~1a"),
            (r#"{"volumes":{"/a":"v","/b":"v"}}"#, "/volumes/~1b"),
        ] {
            assert_eq!(pointers(patch), [pointer], "{patch}");
        }
        assert!(pointers(r#"{"batching":{"max_batch_size":1000,"wait_ms":600000},"timeout_s":86400}"#).is_empty());
    }

    #[test]
    fn what_the_guides_combine_is_accepted() {
        // SPEC B19 B20 B22 I04 J09
        for together in [
            r#"{"autoscaler":{"min_containers":2,"max_containers":100,"buffer_containers":5,"scaledown_window":300}}"#,
            r#"{"autoscaler":{"min_containers":2,"max_containers":100,"buffer_containers":5,"scaledown_window":300},"parameters":{"v":{}}}"#,
            r#"{"volumes":{"/usr/share/ollama/.ollama/models":"ollama"},"resources":{"gpu":"H100"},"autoscaler":{"scaledown_window":10}}"#,
            r#"{"volumes":{"/devices":"a","/a":"b","/a/b":"c"}}"#,
            r#"{"concurrency":{"max_inputs":10},"resources":{"gpu":["L40S"]}}"#,
            r#"{"concurrency":{"max_inputs":20},"protocol":"http"}"#,
            r#"{"concurrency":{"max_inputs":100},"protocol":"http"}"#,
            r#"{"batching":{"max_batch_size":32,"wait_ms":100},"resources":{"gpu":["H100"]}}"#,
            r#"{"batching":{"max_batch_size":32,"wait_ms":100},"resources":{"gpu":["L40S"]}}"#,
        ] {
            assert!(pointers(together).is_empty(), "{together}: {:?}", pointers(together));
        }
    }

    #[test]
    fn a_minimum_above_what_anybody_gets_is_refused() {
        // SPEC decision D1
        let settings = |min| AutoscalerSettings { min_containers: min, ..AutoscalerSettings::default() };
        assert!(within_system(&settings(10), "/autoscaler", 10).is_ok());
        let refused = within_system(&settings(11), "/autoscaler", 10).unwrap_err();
        assert_eq!(refused.errors[0].pointer, "/autoscaler/min_containers");
        assert!(refused.errors[0].detail.contains("system_max_containers=10"), "{refused:?}");
    }

    #[test]
    fn names_are_checked_at_both_ends() {
        assert!(function_key("default", &"a".repeat(128)).is_ok());
        for bad in ["", ".", "..", "a b", "a/b", "ü", &"a".repeat(129)] {
            assert!(function_key("default", bad).is_err(), "{bad}");
        }
    }
}
