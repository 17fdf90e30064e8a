//! The program `capstan`: for people, who run a whole scheduler and worker with it, or the halves of a cluster, and speak to one.

mod chaos;
mod cli;
pub mod client;
mod commands;
mod config;
mod demo;
pub mod local;
pub mod manifest;
mod output;
mod top;
mod up;
mod waiting;

use clap::Parser;
use std::process::ExitCode;

/// The program `capstan`.
pub fn main() -> ExitCode {
    client::provide_crypto();
    capstan_worker::become_helper_if_asked();
    run(cli::Cli::parse())
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
            crate::output::say(format!("capstan: {error:#}"));
            ExitCode::from(failed.map_or(1, client::Failed::exit_code))
        }
    }
}
