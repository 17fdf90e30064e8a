//! A worker's introduction on the wire.

use super::{OLDEST_PROTOCOL, PROTOCOL, link};
use crate::{
    gpu::Gpu,
    isolation::{Isolation, Level},
    report::Hello,
    resource::Amount,
};
use std::ops::RangeInclusive;

/// A worker's introduction, on its way.
pub fn hello_out(hello: Hello) -> link::Hello {
    link::Hello {
        protocol: *hello.protocols.end(),
        oldest_protocol: *hello.protocols.start(),
        worker: hello.worker,
        cpu_milli: hello.capacity.cpu_milli,
        memory_mib: hello.capacity.memory_mib,
        version: hello.version,
        limits: hello.limits,
        instance: hello.instance,
        store: hello.store,
        host: hello.host.map(|host| host.to_string()).unwrap_or_default(),
        gpus: hello.gpus.into_iter().map(gpu_out).collect(),
        isolation: match hello.isolation.level {
            Level::None => String::new(),
            level => level.name().into(),
        },
        not_kept_apart: hello.isolation.not_kept_apart,
        trusts: hello.isolation.trusts,
    }
}

/// The version of the link's protocol that both sides speak from here on: the newest that a worker with these and we know.
pub fn agreed(theirs: &RangeInclusive<u32>) -> Option<u32> {
    let newest = PROTOCOL.min(*theirs.end());
    (newest >= OLDEST_PROTOCOL.max(*theirs.start())).then_some(newest)
}

/// A level that this version does not know is none.
fn level_in(name: &str) -> Level {
    [Level::Strict, Level::Partial].into_iter().find(|level| level.name() == name).unwrap_or(Level::None)
}

fn gpu_out(Gpu { uuid, model, memory_mib }: Gpu) -> link::Gpu {
    link::Gpu { uuid, model, memory_mib }
}

/// A worker's introduction, as it came.
pub fn hello_in(hello: link::Hello) -> Hello {
    Hello {
        protocols: (if hello.oldest_protocol == 0 { hello.protocol } else { hello.oldest_protocol })..=hello.protocol,
        worker: hello.worker,
        capacity: Amount { cpu_milli: hello.cpu_milli, memory_mib: hello.memory_mib, gpus: hello.gpus.len() as u64 },
        version: hello.version,
        limits: hello.limits,
        instance: hello.instance,
        store: hello.store,
        host: hello.host.parse().ok(),
        gpus: hello
            .gpus
            .into_iter()
            .map(|link::Gpu { uuid, model, memory_mib }| Gpu { uuid, model, memory_mib })
            .collect(),
        isolation: Isolation {
            level: level_in(&hello.isolation),
            not_kept_apart: hello.not_kept_apart,
            trusts: hello.trusts,
        },
    }
}
