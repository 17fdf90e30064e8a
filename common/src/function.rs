//! A function's spec: what may be run, and how it scales.

pub use crate::activity::{Activity, ActivitySource, OnMissing};
pub use crate::settings::{AutoscalerSettings, OLDER_NAMES, Overrides, OverridesPatch, ScaleupPolicy};

use crate::{
    gpu::GpuRequest,
    isolation::Needs,
    parameter::Parameter,
    profile::Profile,
    resource::{Amount, Cpu},
    schedule::Schedule,
    time::Seconds,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// One deployed version's spec, as in the REST contract; absent fields take the documented defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    /// What is started.
    pub runtime: Runtime,
    /// How inputs reach it.
    #[serde(default)]
    pub protocol: Protocol,
    /// What one container asks of its worker.
    #[serde(default)]
    pub resources: Resources,
    /// How many containers there are.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = crate::settings::WrittenSettings))]
    pub autoscaler: AutoscalerSettings,
    /// How many inputs a container takes at once.
    #[serde(default)]
    pub concurrency: Concurrency,
    /// Its part of what its namespace gets of a full cluster, against other functions' weights.
    #[serde(default = "one")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 1000, default = 1))]
    pub weight: u32,
    /// Inputs collected into batches.
    #[serde(default)]
    pub batching: Option<Batching>,
    /// What follows a failed attempt.
    #[serde(default, deserialize_with = "retries_or_count")]
    #[cfg_attr(feature = "schema", schema(schema_with = crate::schema::retries))]
    pub retries: Retries,
    /// The longest one attempt may run; waiting does not count.
    #[serde(default = "five_minutes")]
    #[cfg_attr(feature = "schema", schema(value_type = f64, minimum = 1, maximum = 86400, default = 300))]
    pub timeout_s: Seconds,
    /// The longest a container may take to become ready.
    #[serde(default = "five_minutes")]
    #[cfg_attr(feature = "schema", schema(value_type = f64, minimum = 1, maximum = 86400, default = 300))]
    pub startup_timeout_s: Seconds,
    /// A container takes one input and ends.
    #[serde(default)]
    pub single_use_containers: bool,
    /// Runs at set times.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// Settings that hold at set times, laid over the deployed ones; a later one wins over an earlier one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<Profile>,
    /// Start from a warmed template where a worker can.
    #[serde(default)]
    pub snapshot: bool,
    /// The model that the function serves; the scale-to-zero configuration then says when its last container may leave.
    #[serde(default)]
    pub model_id: Option<String>,
    /// How requests are counted that reach the function's containers past Capstan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// Values that an instance is made with: each set of them has containers of its own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, Parameter>,
    /// Of an instance: the values that are not defaults. They come from its name, never from a deployment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "schema", schema(read_only))]
    pub bound: BTreeMap<String, serde_json::Value>,
    /// Volumes by the path at which its processes see them: folders that outlive containers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "schema", schema(example = json!({"/data": "training-set"})))]
    pub volumes: BTreeMap<String, String>,
    /// Free names and values.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Names of secrets put into the environment.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(max_items = 64))]
    pub secrets: Vec<String>,
    /// Whether it runs as the worker's user and sees what the worker sees; only admins may deploy such a function.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trusted: bool,
    /// Whether it was deployed by a token of some namespaces, and may run only where everything is kept apart. Whoever deploys
    /// it may ask for that too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confined: bool,
    /// What its programs may ask of Capstan.
    #[serde(default, skip_serializing_if = "FunctionToken::is_default")]
    pub token: FunctionToken,
}

/// The token that a function's programs have in their environment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FunctionToken {
    /// What it may do, in the function's namespace.
    #[serde(default)]
    pub role: TokenRole,
}

impl FunctionToken {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a function's token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TokenRole {
    /// Nothing: there is none.
    None,
    /// Look at everything in its namespace.
    Read,
    /// Bring work, and cancel it.
    #[default]
    Invoke,
    /// Deploy, scale and remove functions.
    Deploy,
}

fn five_minutes() -> Seconds {
    Seconds::whole(300)
}

impl FunctionSpec {
    /// Inputs that the autoscaler aims to give one container: target, else max, else the batch size, else 1 (SPEC §2.2).
    pub fn slots(&self) -> u64 {
        let concurrency = &self.concurrency;
        let slots = match (concurrency.target_inputs, &self.batching) {
            (Some(target), _) => target,
            (None, Some(batching)) if concurrency.max_inputs == 1 => batching.max_batch_size,
            (None, _) => concurrency.max_inputs,
        };
        u64::from(slots.max(1))
    }

    /// Groups of inputs (one input, or one batch) that a container works on at once.
    pub fn groups_at_once(&self) -> u32 {
        if self.single_use_containers { 1 } else { self.concurrency.max_inputs }
    }

    /// Takes the values out of the environment: they may be secrets.
    pub fn hide_env(&mut self) {
        let env = match &mut self.runtime {
            Runtime::Process(process) => &mut process.env,
            Runtime::Container(image) => &mut image.env,
        };
        env.values_mut().for_each(|value| *value = "***".into());
    }

    /// Inputs in a full group.
    pub fn group_size(&self) -> u32 {
        self.batching.as_ref().map_or(1, |b| b.max_batch_size)
    }

    /// What it needs of a worker's isolation.
    pub fn needs(&self) -> Needs {
        match (self.trusted, self.confined) {
            (true, _) => Needs::Trust,
            (false, true) => Needs::Strict,
            (false, false) => Needs::Nothing,
        }
    }

    /// GPUs that a container asks for, by preference.
    pub fn gpus(&self) -> Vec<GpuRequest> {
        self.resources.gpu.iter().map(|written| GpuRequest::of(written)).collect()
    }

    /// What one container takes from its worker: of GPUs the fewest that it would be content with.
    pub fn amount(&self) -> Amount {
        let gpus = self.gpus().iter().map(|request| request.count).min().unwrap_or(0);
        Amount {
            cpu_milli: u64::from(self.resources.cpu.milli),
            memory_mib: u64::from(self.resources.memory_mib),
            gpus: u64::from(gpus),
        }
    }
}

/// What is started for a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Runtime {
    /// A child process on the worker.
    #[cfg_attr(feature = "schema", schema(title = "ProcessRuntime"))]
    Process(Process),
    /// A container image.
    #[cfg_attr(feature = "schema", schema(title = "ContainerRuntime"))]
    Container(Image),
}

/// A child process on the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Program and arguments; the program is looked up in `PATH`.
    #[cfg_attr(feature = "schema", schema(min_items = 1, example = json!(["python3", "handler.py"])))]
    pub command: Vec<String>,
    /// Where it runs; by default the worker's scratch folder for the container.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Added to a minimal environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A container image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The image's name.
    pub image: String,
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Folders of the worker that it sees.
    #[serde(default)]
    pub mounts: Vec<serde_json::Value>,
}

/// How inputs reach a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// A long-lived server on `PORT`; each input is a `POST /`.
    #[default]
    Http,
    /// One process an input: JSON on standard input, the output on standard output.
    Exec,
}

/// What one container asks of its worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Resources {
    /// Cores requested; counted against the worker.
    #[cfg_attr(feature = "schema", schema(value_type = f64, minimum = 0.001, maximum = 100000, default = 0.125, required = false))]
    pub cpu: Cpu,
    /// Cores that it may never pass, where the worker can enforce it. Equal to `cpu` where only that was written; none where
    /// neither was, or where `cpu` is the default, so that writing a default out changes nothing.
    #[cfg_attr(feature = "schema", schema(value_type = Option<f64>, minimum = 0.001, maximum = 100000))]
    pub cpu_limit: Option<Cpu>,
    /// Memory requested, and the limit where the worker can enforce it.
    #[cfg_attr(feature = "schema", schema(minimum = 0, default = 128, required = false))]
    pub memory_mib: u32,
    /// GPUs by preference.
    #[cfg_attr(feature = "schema", schema(schema_with = crate::schema::gpus, required = false))]
    pub gpu: Vec<String>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu: Cpu { milli: 125 }, cpu_limit: None, memory_mib: 128, gpu: Vec::new() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "Resources")]
struct WrittenResources {
    cpu: Option<Cpu>,
    #[serde(default, deserialize_with = "present")]
    cpu_limit: Option<Option<Cpu>>,
    memory_mib: Option<u32>,
    #[serde(default, deserialize_with = "one_or_list")]
    gpu: Vec<String>,
}

/// `"gpu": "H100"` is short for a list of one.
fn one_or_list<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    struct Either;
    impl<'de> serde::de::Visitor<'de> for Either {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a GPU like \"H100\" or a list of them")
        }
        fn visit_str<E: serde::de::Error>(self, one: &str) -> Result<Vec<String>, E> {
            Ok(vec![one.into()])
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<Vec<String>, A::Error> {
            Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list))
        }
    }
    d.deserialize_any(Either)
}

pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

impl<'de> Deserialize<'de> for Resources {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let written = WrittenResources::deserialize(d)?;
        let defaults = Self::default();
        Ok(Self {
            cpu_limit: written.cpu_limit.unwrap_or(written.cpu.filter(|cpu| *cpu != defaults.cpu)),
            cpu: written.cpu.unwrap_or(defaults.cpu),
            memory_mib: written.memory_mib.unwrap_or(defaults.memory_mib),
            gpu: written.gpu,
        })
    }
}

/// How many inputs a container takes at once (SPEC I).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// Never more at once than this.
    #[serde(default = "one")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 10000, default = 1))]
    pub max_inputs: u32,
    /// What the autoscaler aims at; a container may still take `max_inputs`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1))]
    pub target_inputs: Option<u32>,
}

fn one() -> u32 {
    1
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { max_inputs: 1, target_inputs: None }
    }
}

/// Inputs collected into batches (SPEC J).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// A batch with this many leaves at once.
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 1000))]
    pub max_batch_size: u32,
    /// A batch leaves when its oldest input has waited this long.
    #[cfg_attr(feature = "schema", schema(minimum = 0, maximum = 600000))]
    pub wait_ms: u64,
}

/// What follows a failed attempt (SPEC §2.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// Further attempts after a failure.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 0, maximum = 1000, default = 0))]
    pub max_retries: u32,
    /// The pause before the first retry.
    #[serde(default = "one_second")]
    #[cfg_attr(feature = "schema", schema(minimum = 0, maximum = 60000, default = 1000))]
    pub initial_delay_ms: u64,
    /// What each further pause is multiplied by; 1 is a fixed pause.
    #[serde(default = "two")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 10, default = 2.0))]
    pub backoff_coefficient: f64,
    /// No pause is longer.
    #[serde(default = "one_minute")]
    #[cfg_attr(feature = "schema", schema(minimum = 1000, maximum = 60000, default = 60000))]
    pub max_delay_ms: u64,
}

fn one_second() -> u64 {
    1000
}
fn two() -> f64 {
    2.0
}
fn one_minute() -> u64 {
    60_000
}

impl Default for Retries {
    fn default() -> Self {
        Self { max_retries: 0, initial_delay_ms: one_second(), backoff_coefficient: two(), max_delay_ms: one_minute() }
    }
}

impl Retries {
    /// The pause before retry `n` (from 1): initial · coefficient^(n−1), not under `floor_ms`, not over the maximum (SPEC §2.3).
    pub fn delay_ms(&self, n: u32, floor_ms: u64) -> u64 {
        let exponent = i32::try_from(n.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial_delay_ms as f64 * self.backoff_coefficient.powi(exponent);
        let capped = grown.min(self.max_delay_ms as f64) as u64;
        capped.max(floor_ms)
    }
}

/// `"retries": 2` is short for two retries a fixed second apart.
fn retries_or_count<'de, D: Deserializer<'de>>(d: D) -> Result<Retries, D::Error> {
    struct Either;
    impl<'de> serde::de::Visitor<'de> for Either {
        type Value = Retries;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a number of retries or an object")
        }
        fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Retries, E> {
            let max_retries = u32::try_from(n).map_err(|_| E::custom("too many retries"))?;
            Ok(Retries { max_retries, backoff_coefficient: 1.0, ..Retries::default() })
        }
        fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Retries, E> {
            match u64::try_from(n) {
                Ok(n) => self.visit_u64(n),
                Err(_) => Err(E::custom("retries cannot be negative")),
            }
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Retries, A::Error> {
            Retries::deserialize(serde::de::value::MapAccessDeserializer::new(map))
        }
    }
    d.deserialize_any(Either)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> FunctionSpec {
        serde_json::from_str(json).expect("a spec")
    }

    #[test]
    fn a_spec_with_only_a_command_has_the_documented_defaults() {
        // SPEC A02 B02 B05 B07 B11 I01
        let spec = spec(r#"{"runtime":{"process":{"command":["true"]}}}"#);
        assert_eq!(spec.autoscaler, AutoscalerSettings::default());
        assert_eq!(spec.autoscaler.scaledown_window, 60);
        assert_eq!(spec.concurrency.max_inputs, 1);
        assert_eq!(spec.timeout_s, Seconds::whole(300));
        assert_eq!(spec.resources.cpu_limit, None);
        assert_eq!(spec.slots(), 1);
    }

    #[test]
    fn a_written_cpu_request_is_also_the_limit_unless_null_says_otherwise() {
        let limit = |resources: &str| {
            spec(&format!(r#"{{"runtime":{{"process":{{"command":["true"]}}}},"resources":{resources}}}"#))
                .resources
                .cpu_limit
        };
        assert_eq!(limit(r#"{"cpu":0.5}"#), Some(Cpu { milli: 500 }));
        assert_eq!(limit(r#"{"cpu":0.5,"cpu_limit":null}"#), None);
        assert_eq!(limit(r#"{"cpu":0.5,"cpu_limit":2}"#), Some(Cpu { milli: 2000 }));
        assert_eq!(limit(r#"{"memory_mib":64}"#), None);
        assert_eq!(limit(r#"{"cpu":0.125}"#), None);
    }

    #[test]
    fn one_gpu_may_be_written_without_a_list() {
        let gpus = |written: &str| {
            spec(&format!(r#"{{"runtime":{{"process":{{"command":["true"]}}}},"resources":{{"gpu":{written}}}}}"#))
                .resources
                .gpu
        };
        assert_eq!(gpus(r#""H100""#), ["H100"]);
        assert_eq!(gpus(r#"["H100","A100:2"]"#), ["H100", "A100:2"]);
    }

    #[test]
    fn retry_pauses_grow_to_the_cap_and_a_bare_count_is_a_fixed_second() {
        // SPEC G11
        let grown = Retries { max_retries: 9, ..Retries::default() };
        let pauses: Vec<_> = (1..=8).map(|n| grown.delay_ms(n, 1000)).collect();
        assert_eq!(pauses, [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        let fixed = spec(r#"{"runtime":{"process":{"command":["true"]}},"retries":2}"#).retries;
        assert_eq!(fixed.max_retries, 2);
        assert!((1..=5).all(|n| fixed.delay_ms(n, 1000) == 1000));
    }

    #[test]
    fn slots_are_target_then_max_then_batch_then_one() {
        // SPEC I03 I07
        let base = spec(r#"{"runtime":{"process":{"command":["true"]}}}"#);
        let with = |max, target, batch: Option<u32>| FunctionSpec {
            concurrency: Concurrency { max_inputs: max, target_inputs: target },
            batching: batch.map(|max_batch_size| Batching { max_batch_size, wait_ms: 1 }),
            ..base.clone()
        };
        assert_eq!(with(100, Some(80), None).slots(), 80);
        assert_eq!(with(100, None, None).slots(), 100);
        assert_eq!(with(1, None, Some(32)).slots(), 32);
        assert_eq!(with(1, None, None).slots(), 1);
    }
}
