//! `capstan-tests bench …`: speed. `capstan-tests sim …`: the cores in virtual time.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures Capstan, and simulates it")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs benchmarks; prints one line of JSON for each. Use a release build of the whole workspace.
    Bench {
        /// Which; all of them without a name.
        names: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Bench { names } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(capstan_tests::bench::run(&names))
        }
    }
}
