//! Black-box tests: the real binary, its real interface, real processes.

mod access;
mod apart;
mod bounds;
mod calls;
mod cli;
mod cluster;
mod console;
mod deployments;
mod disks;
mod doors;
mod examples;
mod faults;
mod functions;
mod fuzz;
mod gpu;
mod instances;
mod joining;
mod keda;
mod kill;
mod kubernetes;
mod machines;
mod operating;
mod power;
mod prometheus;
mod scaling;
mod secrets;
mod servers;
mod store;
mod storm;
mod telemetry;
mod tls;
mod volumes;
mod web;

use capstan_common::{report::Hello, resource::Amount, wire::PROTOCOL};
use capstan_tests::real::Up;

/// A fresh `capstan up` and the folder that it lives in.
fn fresh(arguments: &[&str]) -> (tempfile::TempDir, Up) {
    let folder = capstan_tests::real::shared_folder().expect("a folder");
    let up = Up::start(&folder.path().join("data"), arguments).expect("capstan up");
    (folder, up)
}

/// What a worker says of itself that is played by a test.
fn introduction(worker: &str) -> Hello {
    Hello {
        protocols: PROTOCOL..=PROTOCOL,
        worker: worker.into(),
        capacity: Amount { cpu_milli: 1000, memory_mib: 1000, gpus: 0 },
        version: "1".into(),
        limits: String::new(),
        instance: "x".into(),
        store: None,
        host: None,
        isolation: Default::default(),
        gpus: Vec::new(),
    }
}
