//! `capstan-tests bench …`: speed. `capstan-tests sim …`: the cores in virtual time.

use capstan_tests::world::{self, Plan};
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
    /// Writes docs/spec-status.md: which test proves which statement.
    SpecStatus,
    /// Replays a seed in virtual time, or runs many.
    Sim {
        /// The (first) seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        #[arg(long, default_value_t = 3)]
        functions: usize,
        #[arg(long, default_value_t = 3)]
        workers: usize,
        /// Inputs in all, about.
        #[arg(long, default_value_t = 1200)]
        inputs: u64,
        #[arg(long, default_value_t = 12)]
        faults: u32,
        /// Print every event.
        #[arg(long)]
        log: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Bench { names } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(capstan_tests::bench::run(&names))
        }
        Command::SpecStatus => {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            std::fs::write(root.join("docs/spec-status.md"), capstan_tests::spec::page(&root)?)?;
            Ok(())
        }
        Command::Sim { seed, seeds, functions, workers, inputs, faults, log } => {
            let check_all = functions <= 10;
            for seed in seed..seed + seeds {
                let plan = Plan { seed, functions, workers, inputs, faults, log, check_all, mutant: 0 };
                let begun = std::time::Instant::now();
                let report = world::run(&plan).map_err(|broken| {
                    print!("{}", broken.log);
                    anyhow::anyhow!(broken.what)
                })?;
                print!("{}", report.log);
                let world::Report { events, virtual_s, ended, accepted, faults, .. } = report;
                println!(
                    "seed {seed}: {events} events, {virtual_s} virtual s in {:.2} s, {accepted} calls accepted, {ended} inputs ended, {faults} faults: all promises kept",
                    begun.elapsed().as_secs_f64()
                );
            }
            Ok(())
        }
    }
}
