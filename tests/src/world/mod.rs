//! The world in virtual time: the real cores, a network that loses links, workers and schedulers that die or stand still, leases
//! that end, and a store that forgets what it had not written. The same seed gives the same log, byte for byte.

mod check;
mod clients;
mod engine;
mod faults;
mod host;
mod keys;
mod links;
mod populate;
mod scheduler;
mod shell;
pub mod shell_mutant;
mod store;
mod visitors;
mod workers;

pub use engine::World;

/// How large a world is, and how it is treated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Schedulers: one has its store to itself, several share theirs as a cluster does.
    pub schedulers: usize,
    /// Functions, each with a spec of its own.
    pub functions: usize,
    /// Workers.
    pub workers: usize,
    /// Inputs in all, about.
    pub inputs: u64,
    /// Faults of all kinds.
    pub faults: u32,
    /// Whether each event is written to the log.
    pub log: bool,
    /// Whether every function is checked after each of its steps, or only now and then.
    pub check_all: bool,
    /// The planted fault; 0 is none.
    pub mutant: u8,
}

impl Plan {
    /// A small world full of faults.
    pub fn small(seed: u64) -> Self {
        Self {
            seed,
            schedulers: 1,
            functions: 3,
            workers: 3,
            inputs: 1_200,
            faults: 12,
            log: false,
            check_all: true,
            mutant: 0,
        }
    }

    /// A small cluster full of faults.
    pub fn cluster(seed: u64) -> Self {
        Self { schedulers: 3, functions: 5, faults: 16, ..Self::small(seed) }
    }
}

/// What a world came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Events that happened.
    pub events: u64,
    /// Virtual seconds that passed.
    pub virtual_s: u64,
    /// Inputs that ended, durably.
    pub ended: u64,
    /// Calls that were accepted.
    pub accepted: usize,
    /// Faults that were injected.
    pub faults: u32,
    /// The log, if it was asked for.
    pub log: String,
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Which, and with which seed.
    pub what: String,
    /// The log up to there, if it was asked for.
    pub log: String,
}

/// Runs a world to its end.
pub fn run(plan: &Plan) -> Result<Report, Broken> {
    let plan = plan.clone();
    let seed = plan.seed;
    let outcome = std::panic::catch_unwind(move || World::new(plan).run());
    let (report, kept) = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
        (Report::default(), Err(format!("a core panicked: {}", text.unwrap_or_default())))
    });
    match kept {
        Ok(()) => Ok(report),
        Err(broken) => Err(Broken { what: format!("seed {seed}: {broken}"), log: report.log }),
    }
}
