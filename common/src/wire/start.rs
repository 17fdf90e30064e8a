//! What a container is, on the wire. A reader ignores what it does not know; what it must know and does not find it names.

use super::{WireError, link};
use crate::{
    activity::{Activity, ActivitySource, OnMissing},
    container_spec::ContainerSpec,
    function::{Image, Process, Protocol, Runtime},
    id::{ContainerId, FunctionKey, Revision},
    isolation::Needs,
    order::Start,
    resource::Cpu,
    time::Seconds,
};
use std::sync::Arc;

/// The order to start a container, on its way.
pub fn start_out(start: Start) -> link::Start {
    link::Start {
        container: start.container.0,
        namespace: start.function.namespace.to_string(),
        function: start.function.name.to_string(),
        revision: start.revision.0,
        spec: Some(spec_out(&start.spec)),
        gpus: start.gpus,
        env: start.env.into_iter().collect(),
    }
}

/// The order to start a container, as it came.
pub fn start_in(start: link::Start) -> Result<Start, WireError> {
    Ok(Start {
        container: ContainerId(start.container),
        function: FunctionKey::new(&start.namespace, &start.function),
        revision: Revision(start.revision),
        spec: Arc::new(spec_in(start.spec.ok_or(WireError::Missing("spec"))?)?),
        gpus: start.gpus,
        env: start.env.into_iter().collect(),
    })
}

fn spec_out(spec: &ContainerSpec) -> link::ContainerSpec {
    use link::container_spec::Runtime as Kind;
    let runtime = match spec.runtime.clone() {
        Runtime::Process(Process { command, working_dir, env }) => {
            Kind::Process(link::Process { command, working_dir, env: env.into_iter().collect() })
        }
        Runtime::Container(Image { image, command, env, mounts: _ }) => {
            Kind::Image(link::Image { image, command, env: env.into_iter().collect() })
        }
    };
    link::ContainerSpec {
        runtime: Some(runtime),
        protocol: match spec.protocol {
            Protocol::Http => link::Protocol::Http.into(),
            Protocol::Exec => link::Protocol::Exec.into(),
        },
        cpu_milli: spec.cpu.milli,
        cpu_limit_milli: spec.cpu_limit.map(|limit| limit.milli),
        memory_mib: spec.memory_mib,
        at_once: spec.at_once,
        timeout_ms: spec.timeout_ms,
        startup_timeout_ms: spec.startup_timeout_ms,
        needs: match spec.needs {
            Needs::Nothing => link::Needs::Nothing.into(),
            Needs::Strict => link::Needs::Strict.into(),
            Needs::Trust => link::Needs::Trust.into(),
        },
        volumes: spec.volumes.clone().into_iter().collect(),
        activity: spec.activity.as_ref().map(|activity| link::Activity {
            path: activity.path.clone(),
            counter: activity.counter.clone(),
            interval_ms: activity.interval_s.ms,
        }),
        parameters: spec.parameters.clone().into_iter().collect(),
    }
}

fn spec_in(spec: link::ContainerSpec) -> Result<ContainerSpec, WireError> {
    use link::container_spec::Runtime as Kind;
    let runtime = match spec.runtime.ok_or(WireError::Missing("runtime, or one that this version knows"))? {
        Kind::Process(link::Process { command, working_dir, env }) => {
            Runtime::Process(Process { command, working_dir, env: env.into_iter().collect() })
        }
        Kind::Image(link::Image { image, command, env }) => {
            Runtime::Container(Image { image, command, env: env.into_iter().collect(), mounts: Vec::new() })
        }
    };
    let unknown = |what, number| WireError::Unknown(what, number);
    Ok(ContainerSpec {
        runtime,
        protocol: match link::Protocol::try_from(spec.protocol) {
            Ok(link::Protocol::Http) => Protocol::Http,
            Ok(link::Protocol::Exec) => Protocol::Exec,
            Err(_) => return Err(unknown("protocol", spec.protocol)),
        },
        cpu: Cpu { milli: spec.cpu_milli },
        cpu_limit: spec.cpu_limit_milli.map(|milli| Cpu { milli }),
        memory_mib: spec.memory_mib,
        at_once: spec.at_once.max(1),
        timeout_ms: spec.timeout_ms,
        startup_timeout_ms: spec.startup_timeout_ms,
        // A need that is not known cannot be met.
        needs: match link::Needs::try_from(spec.needs) {
            Ok(link::Needs::Nothing) => Needs::Nothing,
            Ok(link::Needs::Strict) => Needs::Strict,
            Ok(link::Needs::Trust) => Needs::Trust,
            Err(_) => return Err(unknown("need", spec.needs)),
        },
        volumes: spec.volumes.into_iter().collect(),
        activity: spec.activity.map(|activity| Activity {
            source: ActivitySource::Container,
            path: activity.path,
            counter: activity.counter,
            interval_s: Seconds { ms: activity.interval_ms },
            on_missing: OnMissing::Keep,
        }),
        parameters: spec.parameters.into_iter().collect(),
    })
}
