//! Black-box tests: the real binary, its real interface, real processes.

mod access;
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
mod servers;
mod store;
mod storm;
mod telemetry;
mod tls;
mod volumes;
mod web;

use capstan_tests::real::Up;

/// A fresh `capstan up` and the folder that it lives in.
fn fresh(arguments: &[&str]) -> (tempfile::TempDir, Up) {
    let folder = tempfile::tempdir().expect("a folder");
    let up = Up::start(&folder.path().join("data"), arguments).expect("capstan up");
    (folder, up)
}
