//! The command line.

mod machines;

pub use machines::{ChaosArgs, DemoArgs, LocalClusterArgs};

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Capstan: serverless functions on your own machines.
#[derive(Parser)]
#[command(version, about, long_about = None, propagate_version = true, after_help = "\
Examples:
  capstan demo                                     everything at work, on this machine
  capstan up                                       a scheduler and worker on http://127.0.0.1:7070
  capstan deploy examples/functions.yaml           deploy what a manifest holds
  capstan invoke examples.count '\"/etc/hosts\"'     one input, and its output
  ls | jq -R . | capstan map examples.count        many inputs from standard input
  capstan explain examples.count                   why there are as many containers as there are")]
pub struct Cli {
    /// Where the scheduler is.
    #[arg(long, global = true, env = "CAPSTAN_URL", default_value = "http://127.0.0.1:7070")]
    pub url: String,
    /// The authority that signed its certificate, as PEM, where its address begins with https: `authority.pem` of its data folder,
    /// unless it has a certificate of yours.
    #[arg(long, global = true, env = "CAPSTAN_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The token that it wants, if any.
    #[arg(long, global = true, env = "CAPSTAN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The namespace.
    #[arg(long, short, global = true, env = "CAPSTAN_NAMESPACE", default_value = "default")]
    #[arg(value_parser = named)]
    pub namespace: String,
    /// Print what the scheduler answered, as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run a scheduler and a worker in one process.
    Up(UpArgs),
    /// Run a scheduler alone: it serves REST, owns functions, and gives their work to workers. Also called `capstan-scheduler`.
    #[command(after_help = "\
Examples:
  capstan-scheduler --config /etc/capstan/scheduler.toml
  capstan-scheduler --listen 127.0.0.1:7070 --set scheduler.link_listen=127.0.0.1:7071 \\
      --set scheduler.etcd.endpoints=http://127.0.0.1:2379 --set scheduler.blob_dir=/srv/capstan/blobs")]
    Scheduler(UpArgs),
    /// Run a worker alone: it runs containers for the schedulers that it dials. Also called `capstan-worker`.
    #[command(after_help = "\
Examples:
  capstan-worker --config /etc/capstan/worker.toml
  capstan-worker --set worker.schedulers=10.0.0.1:7071 --set worker.blob_dir=/srv/capstan/blobs")]
    Worker(UpArgs),
    /// Show everything at work: deploy the examples, map them over files, watch containers rise and fall.
    Demo(DemoArgs),
    /// Say what this machine can keep apart, which limits it enforces, and what is in the way.
    #[command(after_help = "Examples:\n  capstan doctor\n  sudo -u capstan capstan doctor --json")]
    Doctor(UpArgs),
    /// Run a cluster of schedulers, workers and etcd members on this machine, until it is interrupted.
    #[command(after_help = "Example:\n  capstan local-cluster --schedulers 3 --workers 3 --etcd 3 --dir /tmp/capstan")]
    LocalCluster(LocalClusterArgs),
    /// Hurt a cluster on this machine by a seeded plan while clients bring work, and check that every promise was kept.
    #[command(after_help = "Examples:\n  capstan chaos --faults 50\n  capstan chaos --seed 17 --faults 500 --json")]
    Chaos(ChaosArgs),
    /// Deploy the functions of manifests (YAML or TOML).
    #[command(
        after_help = "Example manifest:\n  name: hello\n  runtime: {process: {command: [\"cat\"]}}\n  protocol: exec"
    )]
    Deploy {
        /// Manifests: one function each, or a list under `functions:`.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Check only, and deploy nothing.
        #[arg(long)]
        dry_run: bool,
        /// Come back when the new revisions have taken over; one that does not start is an error, with its output.
        #[arg(long)]
        wait: bool,
        /// Take over at once, whether a container of the new revision is ready or not.
        #[arg(long)]
        force: bool,
        /// Refuse what no worker of the cluster could ever hold.
        #[arg(long)]
        require_capacity: bool,
    },
    /// List functions.
    #[command(after_help = "Example:\n  capstan functions\n  capstan functions --instances my-app.Model")]
    Functions {
        /// The instances of a function with parameters that are in use.
        #[arg(long, value_name = "FUNCTION")]
        instances: Option<String>,
    },
    /// List the last revisions of a function.
    Revisions {
        #[arg(value_parser = named)]
        function: String,
    },
    /// Deploy what an earlier revision was: the one before, or the one that --to names.
    #[command(after_help = "Examples:\n  capstan rollback my-app.f\n  capstan rollback my-app.f --to 3")]
    Rollback {
        #[arg(value_parser = named)]
        function: String,
        /// A revision that `capstan revisions` lists.
        #[arg(long, value_name = "REVISION")]
        to: Option<u32>,
        /// Come back when it has taken over.
        #[arg(long)]
        wait: bool,
    },
    /// Print a function as a manifest that deploys it again unchanged.
    #[command(after_help = "Examples:\n  capstan get my-app.f > f.yaml\n  capstan get my-app.f -o json")]
    Get {
        #[arg(value_parser = named)]
        function: String,
        #[arg(long, short, value_enum, default_value = "yaml")]
        output: ManifestFormat,
    },
    /// Remove a function; its pending inputs end as cancelled.
    Remove {
        #[arg(value_parser = named)]
        function: String,
    },
    /// Send one input and wait for its output.
    #[command(after_help = "Example:\n  capstan invoke examples.count '\"/etc/hosts\"'")]
    Invoke {
        #[arg(value_parser = named)]
        function: String,
        /// The input, as JSON; `-` reads it from standard input.
        #[arg(default_value = "null")]
        input: String,
    },
    /// Send many inputs (NDJSON) and print their outputs while they come.
    #[command(after_help = "Example:\n  seq 1000 | capstan map square --collect > squares.ndjson")]
    Map {
        #[arg(value_parser = named)]
        function: String,
        /// Lines of JSON; standard input without it.
        file: Option<PathBuf>,
        /// Print outputs as they end, not in the order of the inputs.
        #[arg(long)]
        unordered: bool,
        /// Go on after an error; errors are printed among the outputs.
        #[arg(long)]
        collect: bool,
        /// Discard outputs; print only how many succeeded and failed.
        #[arg(long)]
        no_outputs: bool,
    },
    /// Send inputs and do not wait; prints the call's id.
    #[command(
        after_help = "Examples:\n  capstan spawn examples.count '\"/etc/hosts\"'\n  seq 1000000 | capstan spawn square --file -"
    )]
    Spawn {
        #[arg(value_parser = named)]
        function: String,
        /// One input, as JSON.
        #[arg(conflicts_with = "file")]
        input: Option<String>,
        /// Many inputs: lines of JSON in a file, `-` for standard input.
        #[arg(long, short)]
        file: Option<PathBuf>,
        /// Sent again with the same key, it makes no second call.
        #[arg(long)]
        key: Option<String>,
    },
    /// List calls, newest first.
    Calls {
        #[arg(long)]
        #[arg(value_parser = named)]
        function: Option<String>,
        /// pending, running, succeeded, failed or cancelled.
        #[arg(long)]
        state: Option<String>,
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show a call.
    Call { id: String },
    /// Print a call's results.
    Results {
        id: String,
        /// In the order of their ends.
        #[arg(long)]
        unordered: bool,
        /// Wait until the call has ended.
        #[arg(long, short)]
        wait: bool,
    },
    /// List the inputs of a call: where each stands, and how it ended.
    #[command(after_help = "Example:\n  capstan inputs ca-… --state failed")]
    Inputs {
        id: String,
        /// pending, running, succeeded, failed or cancelled.
        #[arg(long)]
        state: Option<String>,
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Sum up a call: how long its inputs waited and ran, and how they failed.
    Summary { id: String },
    /// Cancel a call.
    Cancel { id: String },
    /// Show or change a function's autoscaler settings.
    #[command(
        after_help = "Examples:\n  capstan autoscaler f --min 2 --max 10\n  capstan autoscaler f --reset max_containers"
    )]
    Autoscaler {
        #[arg(value_parser = named)]
        function: String,
        #[arg(long)]
        min: Option<u32>,
        #[arg(long)]
        max: Option<u32>,
        #[arg(long)]
        buffer: Option<u32>,
        /// Seconds a container may idle.
        #[arg(long)]
        window: Option<u32>,
        /// Drop an override: min_containers, max_containers, buffer_containers or scaledown_window.
        #[arg(long)]
        reset: Vec<String>,
    },
    /// Say why: a function's scale decisions, or the life of one input of a call.
    Explain {
        /// A function, or a call's id.
        what: String,
        /// The input's index, for a call.
        index: Option<u64>,
    },
    /// Print what a function's containers wrote, also those that have ended; or one container.
    #[command(
        after_help = "Examples:\n  capstan logs my-app.f -f\n  capstan logs my-app.f --since 600 --timestamps\n  capstan logs ct-0000010000000001 --tail 50"
    )]
    Logs {
        /// A function, or a container's id.
        #[arg(value_parser = named)]
        what: String,
        /// Go on as more comes.
        #[arg(long, short)]
        follow: bool,
        /// The last lines only.
        #[arg(long)]
        tail: Option<usize>,
        /// What came since then: a time (RFC 3339), or seconds back.
        #[arg(long)]
        since: Option<String>,
        /// Begin each line with when it came.
        #[arg(long, short)]
        timestamps: bool,
    },
    /// Watch what happens: deployments, scale decisions, containers, workers.
    #[command(after_help = "Examples:\n  capstan events --function my-app.f\n  capstan --json events | jq .kind")]
    Events {
        #[arg(long)]
        #[arg(value_parser = named)]
        function: Option<String>,
        /// Those that are kept first, from the one after this id on.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Stop a container; what it holds runs elsewhere.
    Stop { container: String },
    /// Print this program's version, and the scheduler's.
    Version,
    /// Watch functions and containers live.
    Top,
    /// Show a function's schedule, pause it, let it go on, or run it now.
    Schedule {
        #[arg(value_parser = named)]
        function: String,
        #[command(subcommand)]
        action: Option<ScheduleAction>,
    },
    /// Play recorded traffic, or a file's, with the live and with other settings, in virtual time.
    #[command(
        after_help = "Examples:\n  capstan simulate --from f --set scaledown_window=300 --set buffer_containers=2\n  capstan simulate --trace day.csv --set max_containers=20 --svg day.svg\n\nA trace is CSV (`seconds,run_ms`) or NDJSON ({\"at\": seconds or time, \"run_ms\": n})."
    )]
    Simulate(SimulateArgs),
    /// Propose settings that would have kept a bound on waiting at the least cost; nothing is applied.
    #[command(after_help = "Example:\n  capstan advise --from f --p95-wait 500ms")]
    Advise(AdviseArgs),
    /// List namespaces with their weights, quotas and what they hold.
    Namespaces,
    /// Show a namespace, or set its weight and quota.
    #[command(after_help = "Example:\n  capstan namespace research --weight 3 --containers 20 --cpu 8 --gpus 4")]
    Namespace {
        name: String,
        /// Its part of a full cluster, against other namespaces.
        #[arg(long)]
        weight: Option<u32>,
        /// The most containers.
        #[arg(long)]
        containers: Option<u32>,
        /// The most cores.
        #[arg(long, value_parser = cores)]
        cpu: Option<f64>,
        /// The most memory.
        #[arg(long)]
        memory_mib: Option<u64>,
        /// The most GPUs.
        #[arg(long)]
        gpus: Option<u32>,
    },
    /// Scaling models to zero: apply a configuration, check it, or ask what holds for a model.
    #[command(
        after_help = "Examples:\n  capstan scale-to-zero lint model-scale-to-zero-config.yaml\n  capstan scale-to-zero apply model-scale-to-zero-config.yaml\n  capstan -n production scale-to-zero explain meta/llama-3.1-8b"
    )]
    ScaleToZero {
        #[command(subcommand)]
        action: ScaleToZero,
    },
    /// API tokens: make, list, revoke.
    #[command(
        after_help = "Examples:\n  capstan token create --role invoke --in team-a --name ci\n  capstan token list\n  capstan token revoke tk-0123456789ab"
    )]
    Token {
        #[command(subcommand)]
        action: TokenAction,
    },
    /// Secrets of the namespace: set, list, remove. Functions that name one have its variables in their environment.
    #[command(
        after_help = "Examples:\n  capstan secret set db USER=app PASSWORD=@password.txt\n  capstan secret list\n  capstan secret remove db"
    )]
    Secret {
        #[command(subcommand)]
        action: SecretAction,
    },
    /// Make a join token: it lets one worker into a cluster with encrypted links, within ten minutes.
    #[command(
        after_help = "Example:\n  capstan-worker --set worker.link_tls=true --set worker.join=$(capstan invite) --set worker.schedulers=10.0.0.1:7071"
    )]
    Invite,
    /// Place nothing more on a worker: what runs there finishes, idle containers stop.
    #[command(after_help = "Example:\n  capstan drain worker-2 --wait && systemctl stop capstan-worker")]
    Drain {
        worker: String,
        /// Come back when nothing is left on it.
        #[arg(long)]
        wait: bool,
    },
    /// Place on a drained worker again.
    Resume { worker: String },
    /// Revoke a worker's certificate: its link ends, and it is never let in again by this name.
    Revoke { worker: String },
    /// List schedulers, and which shards of the functions each owns.
    Schedulers,
    /// List workers.
    Workers,
    /// List containers.
    Containers {
        #[arg(long)]
        #[arg(value_parser = named)]
        function: Option<String>,
    },
    /// Print the effective configuration of `up`, and where each value came from.
    Config(UpArgs),
    /// Print a completion script for a shell.
    Completions { shell: clap_complete::Shell },
}

/// How a manifest is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ManifestFormat {
    /// As YAML.
    Yaml,
    /// As JSON, which is YAML too.
    Json,
}

/// Which traffic.
#[derive(Args)]
pub struct TrafficArgs {
    /// A function: its live settings, and its recorded traffic unless --trace names another.
    #[arg(long)]
    pub from: Option<String>,
    /// A file of traffic, CSV or NDJSON.
    #[arg(long)]
    pub trace: Option<PathBuf>,
    /// How long a container takes to start, where the traffic does not tell.
    #[arg(long, value_parser = milliseconds)]
    pub start_ms: Option<f64>,
    /// Containers that fit at one time.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub places: Option<u32>,
}

fn cores(text: &str) -> Result<f64, String> {
    let cores = text.parse().ok().filter(|cores: &f64| (0.0..=1e6).contains(cores));
    cores.ok_or_else(|| format!("`{text}` must be a number of cores from 0 to 1000000"))
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let read = text.parse().ok().filter(|ms| (0.0..=86_400_000.0).contains(ms));
    read.ok_or_else(|| "must be a number of milliseconds from 0 to 86400000".into())
}

/// What to play.
#[derive(Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    pub traffic: TrafficArgs,
    /// A setting to try, for example --set scaledown_window=300; may be given more than once.
    #[arg(long, value_name = "KEY=NUMBER")]
    pub set: Vec<String>,
    /// Draw containers over time into this file.
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

/// What to keep.
#[derive(Args)]
pub struct AdviseArgs {
    #[command(flatten)]
    pub traffic: TrafficArgs,
    /// 95 of 100 inputs are to wait no longer than this.
    #[arg(long)]
    pub p95_wait: String,
}

/// What to do with a schedule.
#[derive(Subcommand)]
pub enum ScheduleAction {
    /// Run nothing more by itself.
    Pause,
    /// Go on; what was due meanwhile is left out.
    Resume,
    /// Run once, now.
    Run,
}

/// What to do with the scale-to-zero configuration.
#[derive(Subcommand)]
pub enum ScaleToZero {
    /// Print the configuration in force.
    Show,
    /// Replace it by a file's: a ConfigMap, or its data alone, in YAML or JSON.
    Apply { file: PathBuf },
    /// Say what of a file would not hold; fails if there is anything.
    Lint { file: PathBuf },
    /// Say what holds for a model in the namespace, and which entry decided.
    Explain {
        /// The model's id.
        model: String,
        /// Of this file, instead of the configuration in force.
        #[arg(long)]
        file: Option<PathBuf>,
    },
}

/// One half of `up`.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Half {
    /// Queues, scaling, REST.
    Scheduler,
    /// Containers.
    Worker,
}

/// How to run.
#[derive(Args, Clone, Default)]
pub struct UpArgs {
    /// Where REST is served; port 0 picks a free one.
    #[arg(long)]
    pub listen: Option<String>,
    /// Where everything durable lies.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// A TOML file with the sections [scheduler] and [worker].
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Run one half only; the other is another process. They find each other at --link, or by scheduler.link_listen and
    /// worker.schedulers.
    #[arg(long)]
    pub half: Option<Half>,
    /// A unix socket between the halves.
    #[arg(long, value_name = "SOCKET", requires = "half")]
    pub link: Option<PathBuf>,
    /// How the worker's containers run: `process`, or `sim`, which plays them, for trying many machines on few
    /// (worker.sim_workers).
    #[arg(long, value_name = "RUNTIME")]
    pub runtime: Option<String>,
    /// Any one setting, for example --set scheduler.limits.map_running=100; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What to do with secrets.
#[derive(Subcommand)]
pub enum SecretAction {
    /// Set a secret; containers that start from now on have it.
    Set {
        /// Its name.
        #[arg(value_parser = named)]
        name: String,
        /// Its variables; `KEY=@FILE` takes what a file holds, without the line end behind it.
        #[arg(required = true, value_name = "KEY=VALUE")]
        values: Vec<String>,
    },
    /// List secrets and the names of their variables.
    List,
    /// Remove a secret that no function has.
    Remove {
        #[arg(value_parser = named)]
        name: String,
    },
}

/// What to do with tokens.
#[derive(Subcommand)]
pub enum TokenAction {
    /// Make a token; it is shown once.
    Create {
        /// What it may do: read, invoke, deploy or admin.
        #[arg(long)]
        role: String,
        /// A namespace that it holds in, again for each; without it, everywhere.
        #[arg(long = "in", value_name = "NAMESPACE")]
        namespaces: Vec<String>,
        /// What people call it.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List tokens, without what they are.
    List,
    /// Revoke a token at once.
    Revoke { id: String },
}

/// A name that may stand in a path: `..` would lead out of it.
fn named(text: &str) -> Result<String, String> {
    if text.is_empty() || matches!(text, "." | "..") || text.contains(['/', '?', '#']) {
        return Err("a name has letters, digits, `.`, `_` and `-`, and is neither `.` nor `..`".into());
    }
    Ok(text.into())
}
