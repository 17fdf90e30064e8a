//! What each command does.

mod calls;
mod functions;
mod govern;
mod look;
pub mod map;
mod whatif;

use crate::{
    chaos,
    cli::{Cli, Command, Half, UpArgs},
    client::{Client, Failed},
    config, demo, output, top, up,
};
use clap::CommandFactory;
use serde_json::Value;
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;

/// Standard error, or nothing where that is gone: its reader has left, or its disk is full.
struct Unread(std::io::Stderr);

impl Write for Unread {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Structured logs on standard error; `RUST_LOG` says how much.
fn log(default: &str) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{default},h2=off,tonic=off,tower=off,hyper=off")));
    // A log that nobody reads any more is no reason to stop: neither is that told of, for that would be written there too.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Unread(std::io::stderr()))
        .log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        lines.init();
    } else {
        lines.json().init();
    }
}

/// Runs what concerns this machine alone; what a scheduler is asked comes back.
async fn run_here(command: Command, json: bool) -> anyhow::Result<Result<ExitCode, Box<Command>>> {
    match command {
        Command::Up(args) => run_up(args).await?,
        Command::Scheduler(args) => run_up(UpArgs { half: Some(Half::Scheduler), ..args }).await?,
        Command::Worker(args) => run_up(UpArgs { half: Some(Half::Worker), ..args }).await?,
        Command::Demo(args) => {
            log("error");
            return demo::demo(args).await.map(Ok);
        }
        Command::LocalCluster(args) => {
            log("error");
            up::local_cluster(args, json).await?;
        }
        Command::Chaos(args) => {
            log("error");
            return chaos::chaos(args, json).await.map(Ok);
        }
        Command::Config(args) => look::config(&args, json)?,
        Command::Doctor(args) => look::doctor(&args, json)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "capstan", &mut script);
            std::io::stdout().lock().write_all(&script)?;
        }
        other => return Ok(Err(Box::new(other))),
    }
    Ok(Ok(ExitCode::SUCCESS))
}

/// Runs a command line.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let json = cli.json;
    let client = || Client::new(&cli.url, cli.ca.as_deref(), cli.token.clone(), &cli.namespace);
    let command = match run_here(cli.command, json).await? {
        Ok(code) => return Ok(code),
        Err(asked) => asked,
    };
    match *command {
        // Run above.
        Command::Up(_) | Command::Scheduler(_) | Command::Worker(_) | Command::Demo(_) | Command::LocalCluster(_) => {}
        Command::Chaos(_) | Command::Config(_) | Command::Doctor(_) | Command::Completions { .. } => {}
        Command::Top => top::top(&client()?).await?,
        Command::Deploy { files, dry_run, wait, force, require_capacity } => {
            let how = functions::How { dry_run, wait, force, require_capacity };
            functions::deploy(&client()?, &files, &how, json).await?;
        }
        Command::Functions { instances } => functions::list(&client()?, instances.as_deref(), json).await?,
        Command::Revisions { function } => functions::revisions(&client()?, &function, json).await?,
        Command::Rollback { function, to, wait } => functions::rollback(&client()?, &function, to, wait, json).await?,
        Command::Get { function, output } => functions::get(&client()?, &function, output).await?,
        Command::Remove { function } => functions::remove(&client()?, &function, json).await?,
        Command::Autoscaler { function, min, max, buffer, window, reset } => {
            functions::autoscaler(&client()?, &function, [min, max, buffer, window], &reset, json).await?;
        }
        Command::Invoke { function, input } => calls::invoke(&client()?, &function, input).await?,
        Command::Spawn { function, input, file, key } => {
            calls::spawn(&client()?, &function, input, file.as_deref(), key.as_deref(), json).await?;
        }
        Command::Map { function, file, unordered, collect, no_outputs } => {
            let terms = map::Terms { ordered: !unordered, collect, outputs: !no_outputs };
            return map::map(&client()?, &function, file.as_deref(), terms).await;
        }
        Command::Calls { function, state, limit } => {
            calls::list(&client()?, function.as_deref(), state.as_deref(), limit, json).await?;
        }
        Command::Call { id } => return calls::show(&client()?, &id, json).await,
        Command::Results { id, unordered, wait } => return calls::results(&client()?, &id, !unordered, wait).await,
        Command::Inputs { id, state, limit } => calls::inputs(&client()?, &id, state.as_deref(), limit, json).await?,
        Command::Summary { id } => calls::summary(&client()?, &id, json).await?,
        Command::Events { function, after } => {
            look::events(&client()?, function.as_deref(), after.as_deref(), json).await?;
        }
        Command::Stop { container } => look::stop(&client()?, &container, json).await?,
        Command::Version => look::version(&client()?, json).await?,
        Command::Cancel { id } => calls::cancel(&client()?, &id, json).await?,
        Command::Explain { what, index } => look::explain(&client()?, &what, index, json).await?,
        Command::Logs { what, follow, tail, since, timestamps } => {
            let asked = look::Output { follow, timestamps, tail, since: since.as_deref() };
            look::logs(&client()?, &what, &asked).await?;
        }
        Command::Schedule { function, action } => govern::schedule(&client()?, &function, action, json).await?,
        Command::Simulate(args) => whatif::simulate(&client()?, args, json).await?,
        Command::Advise(args) => whatif::advise(&client()?, args, json).await?,
        Command::Namespaces => govern::namespaces(&client()?, json).await?,
        Command::Namespace { name, weight, containers, cpu, memory_mib, gpus } => {
            let changes = [
                ("weight", weight.map(Value::from)),
                ("containers", containers.map(Value::from)),
                ("cpu", cpu.map(Value::from)),
                ("memory_mib", memory_mib.map(Value::from)),
                ("gpus", gpus.map(Value::from)),
            ];
            let named = changes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            govern::namespace(&client()?, &name, named.collect(), json).await?;
        }
        Command::ScaleToZero { action } => govern::scale_to_zero(&client()?, action, json).await?,
        Command::Secret { action } => govern::secret(&client()?, action, json).await?,
        Command::Token { action } => govern::token(&client()?, action, json).await?,
        Command::Invite => govern::invite(&client()?, json).await?,
        Command::Drain { worker, wait } => govern::drain(&client()?, &worker, wait, json).await?,
        Command::Resume { worker } => govern::resume(&client()?, &worker, json).await?,
        Command::Revoke { worker } => govern::revoke(&client()?, &worker, json).await?,
        Command::Schedulers => look::schedulers(&client()?, json).await?,
        Command::Workers => look::workers(&client()?, json).await?,
        Command::Containers { function } => look::containers(&client()?, function.as_deref(), json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a scheduler, a worker, or both, until a signal.
async fn run_up(args: UpArgs) -> anyhow::Result<()> {
    log("info");
    let settings = usage(config::load(&args))?.settings;
    if args.half != Some(Half::Worker) {
        usage(settings.scheduler.check().map_err(anyhow::Error::msg))?;
    }
    if args.half != Some(Half::Scheduler) {
        usage(settings.worker.check().map_err(anyhow::Error::msg))?;
    }
    let ran = up::up(settings, args.half, args.link).await;
    // It did not start, or did not stop, as asked.
    ran.map_err(|error| Failed::Refused(format!("{error:#}"), serde_json::Value::Null).into())
}

/// A wrong configuration is wrong usage.
fn usage<T>(loaded: anyhow::Result<T>) -> Result<T, Failed> {
    loaded.map_err(|error| Failed::Usage(format!("{error:#}")))
}

/// Asks for a list and prints it: the answer as JSON, or the items under `key` as a table of the named fields.
async fn list(client: &Client, path: &str, key: &str, fields: &[(&str, &str)], as_json: bool) -> anyhow::Result<()> {
    let answer = client.get(path).await?;
    if as_json {
        return output::print_json(&answer);
    }
    print_list(answer[key].as_array().map_or(&[], Vec::as_slice), fields)
}

/// Prints items as a table of the named fields.
fn print_list(listed: &[serde_json::Value], fields: &[(&str, &str)]) -> anyhow::Result<()> {
    let head: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let rows = listed.iter().map(|item| {
        let cell = |pointer: &str| output::text(item.pointer(pointer).unwrap_or(&serde_json::Value::Null));
        fields.iter().map(|(_, pointer)| cell(pointer)).collect()
    });
    output::print(output::table(&head, rows))
}
