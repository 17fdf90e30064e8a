//! One process of a local cluster, which can be killed, paused, and started again as it was.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};

/// How long a process may take to end in order; the systemd unit says the same.
const STOP: Duration = Duration::from_secs(30);

/// A part of a cluster. Ends with this value.
pub struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    out: Option<BufReader<ChildStdout>>,
    paused: bool,
}

impl Process {
    /// Starts it; its standard error goes to a file of its name in the folder.
    pub fn start(name: &str, program: PathBuf, arguments: Vec<String>, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let mut process = Self { name: name.into(), program, arguments, log, child: None, out: None, paused: false };
        process.run()?;
        Ok(process)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Where its standard error goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    fn run(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        self.out = child.stdout.take().map(BufReader::new);
        self.child = Some(child);
        self.paused = false;
        Ok(())
    }

    /// The first line that it writes.
    pub async fn first_line(&mut self, most: Duration) -> Result<String> {
        let mut line = String::new();
        if let Some(out) = &mut self.out {
            tokio::time::timeout(most, out.read_line(&mut line)).await.context("it says nothing")??;
        }
        if line.is_empty() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let end: Vec<&str> = log.lines().rev().take(5).collect();
            bail!("{} did not start: {}", self.name, end.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(line.trim().into())
    }

    /// Ends it at once.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Asks it to end, and waits; one that does not is ended, as a supervisor would.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::TERM)?;
            match tokio::time::timeout(STOP, child.wait()).await {
                Ok(ended) => drop(ended?),
                Err(_) => child.kill().await?,
            }
        }
        Ok(())
    }

    /// Stops its clock, or lets it go on.
    pub fn pause(&mut self, paused: bool) -> Result<()> {
        if let Some(child) = &self.child {
            signal(child, if paused { Signal::STOP } else { Signal::CONT })?;
            self.paused = paused;
        }
        Ok(())
    }

    /// It runs again if it ended by itself, as a supervisor would have it.
    pub fn revive(&mut self) -> Result<()> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => false,
        };
        if ended { self.run() } else { Ok(()) }
    }

    /// It runs, whatever was done to it.
    pub fn heal(&mut self) -> Result<()> {
        if self.paused {
            self.pause(false)?;
        }
        let gone = match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        };
        if gone { self.run() } else { Ok(()) }
    }
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32)).context("the process has ended")?;
    Ok(kill_process(pid, signal)?)
}
