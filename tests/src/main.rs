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
    /// Runs the escape probes and writes docs/isolation-probes.md.
    Probes,
    /// Replays a seed in virtual time, or runs many.
    Sim(Sim),
}

#[derive(clap::Args)]
struct Sim {
    /// The (first) seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds; above 20 only their sums are printed.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Schedulers: one alone, or several as a cluster over etcd.
    #[arg(long, default_value_t = 1)]
    schedulers: usize,
    #[arg(long)]
    functions: Option<usize>,
    #[arg(long)]
    workers: Option<usize>,
    /// Inputs in all, about.
    #[arg(long)]
    inputs: Option<u64>,
    #[arg(long)]
    faults: Option<u32>,
    /// Plants a fault of the shells: 100 a fence that is not compared, 101 work that is given out before workers have told.
    #[arg(long, default_value_t = 0)]
    mutant: u8,
    /// Print every event.
    #[arg(long)]
    log: bool,
}

impl Sim {
    fn plan(&self, seed: u64) -> Plan {
        let plan = if self.schedulers > 1 { Plan::cluster(seed) } else { Plan::small(seed) };
        let functions = self.functions.unwrap_or(plan.functions);
        Plan {
            schedulers: self.schedulers,
            functions,
            workers: self.workers.unwrap_or(plan.workers),
            inputs: self.inputs.unwrap_or(plan.inputs),
            faults: self.faults.unwrap_or(plan.faults),
            log: self.log,
            check_all: functions <= 10,
            mutant: self.mutant,
            ..plan
        }
    }

    fn run(&self) -> anyhow::Result<()> {
        let (begun, mut sum) = (std::time::Instant::now(), world::Report::default());
        for seed in self.seed..self.seed + self.seeds {
            let began = std::time::Instant::now();
            let report = world::run(&self.plan(seed)).map_err(|broken| {
                print!("{}", broken.log);
                anyhow::anyhow!(broken.what)
            })?;
            print!("{}", report.log);
            if self.seeds <= 20 {
                println!("seed {seed}: {}", sentence(&report, began.elapsed()));
            }
            sum.events += report.events;
            sum.virtual_s += report.virtual_s;
            sum.ended += report.ended;
            sum.accepted += report.accepted;
            sum.faults += report.faults;
        }
        println!("{} seeds: {}", self.seeds, sentence(&sum, begun.elapsed()));
        Ok(())
    }
}

fn sentence(report: &world::Report, took: std::time::Duration) -> String {
    let world::Report { events, virtual_s, ended, accepted, faults, .. } = report;
    format!(
        "{events} events, {virtual_s} virtual s in {:.2} s, {accepted} calls accepted, {ended} inputs ended, {faults} faults: all promises kept",
        took.as_secs_f64()
    )
}

fn main() -> anyhow::Result<()> {
    // Benchmarks of parts of a worker start its helpers.
    capstan_worker::become_helper_if_asked();
    match Arguments::parse().command {
        Command::Bench { names } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(capstan_tests::bench::run(&names))
        }
        Command::Probes => {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            tokio::runtime::Runtime::new()?
                .block_on(capstan_tests::probes::write(&root.join("docs/isolation-probes.md")))
        }
        Command::SpecStatus => {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            std::fs::write(root.join("docs/spec-status.md"), capstan_tests::spec::page(&root)?)?;
            Ok(())
        }
        Command::Sim(sim) => sim.run(),
    }
}
