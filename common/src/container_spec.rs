//! What a worker must know of a function to run a container of it, and nothing else. A scheduler makes it of the function's spec;
//! in messages it is a type of its own, so that a spec may grow without older workers hearing of it (DESIGN law 15).

use crate::{
    activity::{Activity, ActivitySource},
    function::{FunctionSpec, Protocol, Runtime},
    isolation::Needs,
    parameter,
    resource::{Amount, Cpu},
};
use std::collections::BTreeMap;

/// What a container is.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerSpec {
    /// What is started.
    pub runtime: Runtime,
    /// How inputs reach it.
    pub protocol: Protocol,
    /// Cores requested; counted against the worker.
    pub cpu: Cpu,
    /// Cores that it may never pass.
    pub cpu_limit: Option<Cpu>,
    /// Memory requested, and the limit.
    pub memory_mib: u32,
    /// Groups of inputs that it works on at once.
    pub at_once: u32,
    /// The longest one attempt may run, in milliseconds.
    pub timeout_ms: u64,
    /// The longest it may take to become ready, in milliseconds.
    pub startup_timeout_ms: u64,
    /// What it needs of the worker's isolation.
    pub needs: Needs,
    /// Volumes by the path at which its processes see them.
    pub volumes: BTreeMap<String, String>,
    /// The counter of requests that it has itself, if it is to be read.
    pub activity: Option<Activity>,
    /// The function's parameters, as its programs find them in their environment.
    pub parameters: BTreeMap<String, String>,
}

impl ContainerSpec {
    /// That of a function's containers.
    pub fn of(spec: &FunctionSpec) -> Self {
        let counts_itself = |activity: &&Activity| activity.source == ActivitySource::Container;
        Self {
            runtime: spec.runtime.clone(),
            protocol: spec.protocol,
            cpu: spec.resources.cpu,
            cpu_limit: spec.resources.cpu_limit,
            memory_mib: spec.resources.memory_mib,
            at_once: spec.groups_at_once(),
            timeout_ms: spec.timeout_s.ms,
            startup_timeout_ms: spec.startup_timeout_s.ms,
            needs: spec.needs(),
            volumes: spec.volumes.clone(),
            activity: spec.activity.as_ref().filter(counts_itself).cloned(),
            parameters: parameter::environment(spec).into_iter().collect(),
        }
    }

    /// What it takes from its worker, with so many GPUs.
    pub fn amount(&self, gpus: u32) -> Amount {
        Amount { cpu_milli: u64::from(self.cpu.milli), memory_mib: u64::from(self.memory_mib), gpus: u64::from(gpus) }
    }
}
