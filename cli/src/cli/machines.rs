//! Arguments of what starts several programs on one machine.

use crate::local::{self, Size};
use clap::Args;
use std::path::PathBuf;

/// How large a cluster.
#[derive(Args, Clone)]
pub struct SizeArgs {
    /// etcd members.
    #[arg(long, default_value_t = 3)]
    pub etcd: usize,
    /// Schedulers.
    #[arg(long, default_value_t = 3)]
    pub schedulers: usize,
    /// Workers.
    #[arg(long, default_value_t = 3)]
    pub workers: usize,
    /// Encrypt links and REST; workers join by tokens.
    #[arg(long)]
    pub tls: bool,
    /// Use loopback ports, also where each node could have a network namespace of its own (root, and the package iproute2).
    #[arg(long)]
    pub loopback: bool,
}

impl SizeArgs {
    /// A cluster of this size.
    pub fn size(&self) -> Size {
        let Self { etcd, schedulers, workers, tls, loopback } = *self;
        let allowed = if loopback { Ok(()) } else { local::is_allowed() };
        if let Err(why) = &allowed {
            crate::output::say(format!(
                "capstan: the nodes share loopback ports, for they cannot have network namespaces: {why:#}"
            ));
        }
        let namespaces = !loopback && allowed.is_ok();
        Size { etcd, schedulers, workers, tls, namespaces, ..Size::default() }
    }
}

/// Which cluster.
#[derive(Args, Clone)]
pub struct LocalClusterArgs {
    /// How large it is.
    #[command(flatten)]
    pub size: SizeArgs,
    /// Where everything lies; without it a folder that goes when it ends.
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// How much chaos.
#[derive(Args, Clone)]
pub struct ChaosArgs {
    /// What the plan is made from: the same seed gives the same faults.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many faults.
    #[arg(long, default_value_t = 50)]
    pub faults: usize,
    /// How large the cluster is.
    #[command(flatten)]
    pub size: SizeArgs,
    /// Keep everything, logs included, in this folder.
    #[arg(long, value_name = "FOLDER")]
    pub keep: Option<PathBuf>,
}

/// What to show.
#[derive(Args, Clone)]
pub struct DemoArgs {
    /// The folder whose files are the inputs.
    #[arg(long, default_value = "/usr/share/doc")]
    pub inputs: PathBuf,
    /// Go on serving afterwards.
    #[arg(long)]
    pub keep: bool,
    /// The folder with the example functions; without it, the ones that came with this program.
    #[arg(long)]
    pub examples: Option<PathBuf>,
}
