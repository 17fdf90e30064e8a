//! `capstan`: one binary for people. It runs a whole scheduler and worker, and speaks to one.

mod cli;
mod client;
mod commands;
mod config;
mod demo;
mod manifest;
mod output;
mod top;
mod up;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    capstan_worker::keeper::run_if_asked();
    let cli = cli::Cli::parse();
    let system = actix_rt::System::new();
    let result = system.block_on(commands::run(cli));
    match result {
        Ok(code) => code,
        Err(error) => {
            let code = error.downcast_ref::<client::Failed>().map_or(1, client::Failed::exit_code);
            if !output::is_closed_pipe(&error) {
                eprintln!("capstan: {error:#}");
            }
            ExitCode::from(code)
        }
    }
}
