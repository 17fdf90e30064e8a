//! The programs: `capstan`, for people, which runs a whole scheduler and worker and speaks to one; `capstan-scheduler` and
//! `capstan-worker`, the halves of a cluster.

mod cli;
mod client;
mod commands;
mod config;
mod demo;
pub mod local;
mod manifest;
mod output;
mod top;
mod up;

use clap::Parser;
use std::process::ExitCode;

/// The program `capstan`.
pub fn main() -> ExitCode {
    capstan_worker::keeper::run_if_asked();
    run(cli::Cli::parse())
}

/// The program `capstan-scheduler`: a scheduler alone. Workers dial in at its `link_listen`.
pub fn scheduler() -> ExitCode {
    let cli::SchedulerCli { args } = cli::SchedulerCli::parse();
    run(cli::Cli::up(cli::UpArgs { half: Some(cli::Half::Scheduler), ..args }))
}

/// The program `capstan-worker`: a worker alone, which dials the schedulers of its configuration.
pub fn worker() -> ExitCode {
    capstan_worker::keeper::run_if_asked();
    let cli::WorkerCli { args } = cli::WorkerCli::parse();
    run(cli::Cli::up(cli::UpArgs { half: Some(cli::Half::Worker), ..args }))
}

fn run(cli: cli::Cli) -> ExitCode {
    let json = cli.json;
    let system = actix_rt::System::new();
    let result = system.block_on(commands::run(cli));
    match result {
        Ok(code) => code,
        Err(error) => {
            if output::is_closed_pipe(&error) {
                // Whoever read has seen enough: `capstan … | head` did what it should.
                return ExitCode::SUCCESS;
            }
            let failed = error.downcast_ref::<client::Failed>();
            if let Some(answer) = failed.and_then(client::Failed::answer).filter(|_| json) {
                // As everywhere with `--json`: what the API answered. Nothing more can be done if that cannot be written.
                let _ = output::print_json(answer);
            }
            eprintln!("capstan: {error:#}");
            ExitCode::from(failed.map_or(1, client::Failed::exit_code))
        }
    }
}
