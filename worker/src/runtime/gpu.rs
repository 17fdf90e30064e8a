//! Which GPUs a worker offers, and how a container sees those that are its.
//!
//! The driver is asked in a process of its own that can be killed: a call into it may hang (RELIABILITY F37).

use crate::config::{Runtime, WorkerConfig};
use capstan_common::gpu::{Gpu, GpuRequest, model};
use nvml_wrapper::{Nvml, error::NvmlError};
use std::{collections::BTreeMap, ffi::OsStr, path::Path, process::Stdio, sync::Arc, time::Duration};

/// The first argument that makes a Capstan binary list the GPUs of this machine.
const ARGUMENT: &str = "__gpus";
/// How long the driver may take to answer; a machine with eight cards that has just booted takes some seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is there where NVIDIA's driver is: without these it is not worth a process to ask.
const SIGNS: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];
/// The most that may be declared.
const MOST: u32 = 64;

/// What the operator says of a worker's GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// Those that the driver knows, or those of one model among them.
    Found(Option<String>),
    /// None.
    Nothing,
    /// So many of a model, without asking the driver: they are numbered.
    Declared(String, u32),
}

impl Offer {
    /// Reads `auto`, `none`, `H100` or `H100:8`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn read(written: &str) -> Result<Self, String> {
        let clean = |model: &str| {
            !model.is_empty() && model.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let wrong = || {
            format!(
                "worker.gpus must be `auto`, `none`, a model like `H100` to offer those of it alone, or a model and a number from 1 to {MOST} like `H100:8` to offer them without asking the driver; it is `{written}`"
            )
        };
        let (word, is_any) = (written.to_ascii_lowercase(), |model: &str| model.eq_ignore_ascii_case("any"));
        match written.split_once(':') {
            None if word == "auto" => Ok(Self::Found(None)),
            None if word == "none" => Ok(Self::Nothing),
            None if is_any(written) => Err(wrong()),
            Some((model, _)) if is_any(model) => Err(wrong()),
            None if clean(written) => Ok(Self::Found(Some(written.to_ascii_uppercase()))),
            Some((model, count)) if clean(model) => {
                let count = count.parse().ok().filter(|count| (1..=MOST).contains(count)).ok_or_else(wrong)?;
                Ok(Self::Declared(model.to_ascii_uppercase(), count))
            }
            _ => Err(wrong()),
        }
    }
}

/// The GPUs that a worker offers, all of one model.
///
/// # Errors
/// The driver cannot be asked, or has none of the model that the operator named.
pub async fn offered(config: &WorkerConfig) -> Result<Vec<Gpu>, String> {
    let named = match Offer::read(&config.gpus)? {
        Offer::Nothing => return Ok(Vec::new()),
        Offer::Declared(model, count) => {
            let numbered = |n: u32| Gpu { uuid: n.to_string(), model: model.clone(), memory_mib: 0 };
            return Ok((0..count).map(numbered).collect());
        }
        Offer::Found(named) => named,
    };
    let is_likely = !config.nvml.as_os_str().is_empty() || SIGNS.iter().any(|sign| Path::new(sign).exists());
    match (config.runtime, &named) {
        (Runtime::Sim, Some(model)) => {
            return Err(format!("worker.runtime=sim has no GPUs to find: declare them, like worker.gpus={model}:8"));
        }
        (Runtime::Sim, None) => return Ok(Vec::new()),
        (Runtime::Process, None) if !is_likely => return Ok(Vec::new()),
        (Runtime::Process, _) => {}
    }
    let found = match ask(&config.nvml).await {
        Ok(found) => found,
        Err(error) if named.is_none() => {
            tracing::warn!(error, "the GPU driver cannot be asked: this worker offers no GPU");
            Vec::new()
        }
        Err(error) => {
            return Err(format!("worker.gpus is `{}`, and the GPU driver cannot be asked: {error}", config.gpus));
        }
    };
    of_one_model(found, named.as_deref())
}

/// Those of the model that is named, as functions name it, or else of the one of which there are most.
fn of_one_model(found: Vec<Gpu>, named: Option<&str>) -> Result<Vec<Gpu>, String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    found.iter().for_each(|gpu| *counts.entry(gpu.model.clone()).or_default() += 1);
    let models = || counts.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let is_named = |model: &str| named.is_none_or(|named| GpuRequest::of(named).takes(model));
    let those = counts.iter().filter(|(model, _)| is_named(model));
    let most = those.max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0))).map(|(model, _)| model.clone());
    let Some(chosen) = most else {
        let has = if counts.is_empty() { "no GPU at all".into() } else { models() };
        let none = |named| format!("worker.gpus is `{named}`, and this machine has none of it; it has: {has}");
        return named.map_or(Ok(Vec::new()), |named| Err(none(named)));
    };
    if counts.len() > 1 && named.is_none() {
        tracing::warn!(
            offered = chosen,
            found = models(),
            "this machine has GPUs of several models, and a worker offers one: run another worker with worker.gpus set to the other"
        );
    }
    Ok(found.into_iter().filter(|gpu| gpu.model == chosen).collect())
}

/// Asks the driver, in a process of its own.
async fn ask(library: &Path) -> Result<Vec<Gpu>, String> {
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg(ARGUMENT).arg(library).stdin(Stdio::null()).kill_on_drop(true);
    let answer = tokio::time::timeout(PATIENCE, command.output()).await;
    let answer = answer.map_err(|_| format!("it has not answered for {} s", PATIENCE.as_secs()))?;
    let answer = answer.map_err(|error| format!("no process for it: {error}"))?;
    if !answer.status.success() {
        return Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned());
    }
    for said in String::from_utf8_lossy(&answer.stderr).lines() {
        tracing::warn!("{said}");
    }
    serde_json::from_slice(&answer.stdout).map_err(|error| format!("its list cannot be read: {error}"))
}

/// Lists the GPUs of this machine and ends, if the command line asks for it.
pub fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let list = list(&arguments.next().unwrap_or_default()).map_err(|error| error.to_string());
    match list.and_then(|gpus| serde_json::to_string(&gpus).map_err(|error| error.to_string())) {
        Ok(text) => println!("{text}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
    std::process::exit(0);
}

fn list(library: &OsStr) -> Result<Vec<Gpu>, NvmlError> {
    let mut builder = Nvml::builder();
    if !library.is_empty() {
        builder.lib_path(library);
    }
    let nvml = builder.init()?;
    let mut gpus = Vec::new();
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        // One that is cut into slices is not to be had whole; older cards do not know the question.
        if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
            eprintln!("GPU {index} is in MIG mode, and is not offered");
            continue;
        }
        let memory_mib = device.memory_info().map_or(0, |memory| memory.total >> 20);
        gpus.push(Gpu { uuid: device.uuid()?, model: model(&device.name()?, memory_mib), memory_mib });
    }
    Ok(gpus)
}

/// What a container's programs are told of GPUs, where its worker has any: they see its own, and no other.
pub fn environment(offered: &[Gpu], given: &[Arc<str>]) -> Vec<(&'static str, String)> {
    if offered.is_empty() {
        return Vec::new();
    }
    let ids = given.join(",");
    let for_engines = if given.is_empty() { "void".into() } else { ids.clone() };
    // Numbers mean the same card to everybody only in the order of the bus.
    vec![
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into()),
        ("CUDA_VISIBLE_DEVICES", ids),
        ("NVIDIA_VISIBLE_DEVICES", for_engines),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(uuid: &str, model: &str) -> Gpu {
        Gpu { uuid: uuid.into(), model: model.into(), memory_mib: 1 }
    }

    #[test]
    fn what_the_operator_says_is_read_or_refused() {
        assert_eq!(Offer::read("auto"), Ok(Offer::Found(None)));
        assert_eq!(Offer::read("none"), Ok(Offer::Nothing));
        assert_eq!(Offer::read("a100-80gb"), Ok(Offer::Found(Some("A100-80GB".into()))));
        assert_eq!(Offer::read("h100:8"), Ok(Offer::Declared("H100".into(), 8)));
        assert_eq!(Offer::read("None"), Ok(Offer::Nothing));
        for wrong in ["any", "any:2", "", ":2", "H100:0", "H100:65", "H100:x", "two words"] {
            assert!(Offer::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_worker_offers_one_model_the_one_it_has_most_of_or_the_one_that_is_named() {
        let found = || vec![gpu("1", "L4"), gpu("2", "H100"), gpu("3", "H100"), gpu("4", "A10G")];
        let ids = |gpus: Vec<Gpu>| gpus.into_iter().map(|gpu| gpu.uuid).collect::<Vec<_>>();
        assert_eq!(ids(of_one_model(found(), None).unwrap()), ["2", "3"]);
        assert_eq!(ids(of_one_model(found(), Some("L4")).unwrap()), ["1"]);
        let a100 = vec![gpu("1", "A100-40GB"), gpu("2", "L4"), gpu("3", "L4")];
        assert_eq!(ids(of_one_model(a100, Some("A100")).unwrap()), ["1"]);
        assert!(of_one_model(Vec::new(), Some("B200")).unwrap_err().contains("no GPU at all"));
        assert!(of_one_model(found(), Some("B200")).unwrap_err().contains("A10G, H100, L4"));
        assert_eq!(of_one_model(Vec::new(), None), Ok(Vec::new()));
    }

    #[test]
    fn a_container_sees_its_own_gpus_and_without_any_none_of_the_workers() {
        let offered = [gpu("GPU-1", "H100"), gpu("GPU-2", "H100")];
        let told = |given: &[&str]| {
            let given: Vec<Arc<str>> = given.iter().map(|id| (*id).into()).collect();
            environment(&offered, &given).into_iter().collect::<BTreeMap<_, _>>()
        };
        assert_eq!(told(&["GPU-1", "GPU-2"])["CUDA_VISIBLE_DEVICES"], "GPU-1,GPU-2");
        assert_eq!((&*told(&[])["CUDA_VISIBLE_DEVICES"], &*told(&[])["NVIDIA_VISIBLE_DEVICES"]), ("", "void"));
        assert!(environment(&[], &[]).is_empty());
    }
}
