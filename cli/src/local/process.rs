//! One process of a local cluster, which can be killed, paused, and started again as it was.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
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
    /// How it crashed, each time that nobody killed it.
    crashes: Vec<String>,
    out: Option<BufReader<ChildStdout>>,
    paused: bool,
}

impl Process {
    /// Starts it; its standard error goes to a file of its name in the folder.
    pub fn start(name: &str, program: PathBuf, arguments: Vec<String>, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let mut process = Self {
            name: name.into(),
            program,
            arguments,
            log,
            child: None,
            crashes: Vec::new(),
            out: None,
            paused: false,
        };
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

    /// How it crashed, each time that nobody killed it.
    pub fn crashes(&self) -> &[String] {
        &self.crashes
    }

    /// An end by a signal that nobody sent is a crash: a panic aborts. An orderly end with an error is not, where what it needs is
    /// out of reach.
    fn note_crash(&mut self, status: ExitStatus) {
        // One that is told to end before it listens for that just ends.
        let sent = [Signal::KILL, Signal::TERM].map(Signal::as_raw);
        if let Some(signal) = status.signal().filter(|signal| !sent.contains(signal)) {
            self.crashes.push(format!("{} crashed by signal {signal}: see {}", self.name, self.log.display()));
        }
    }

    /// Whether it has ended by itself.
    fn has_ended(&mut self) -> Result<bool> {
        let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
        if let Some(status) = ended {
            self.note_crash(status);
        }
        Ok(ended.is_some())
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
        self.has_ended()?;
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Asks it to end, and waits; one that does not is ended, as a supervisor would.
    pub async fn stop(&mut self) -> Result<()> {
        if self.has_ended()? {
            self.child = None;
        }
        let Some(mut child) = self.child.take() else { return Ok(()) };
        signal(&child, Signal::TERM)?;
        match tokio::time::timeout(STOP, child.wait()).await {
            Ok(ended) => {
                let status = ended?;
                self.note_crash(status);
            }
            Err(_) => {
                self.crashes.push(format!("{} was told to end and did not within {STOP:?}", self.name));
                child.kill().await?;
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
        if self.has_ended()? { self.run() } else { Ok(()) }
    }

    /// It runs, whatever was done to it.
    pub fn heal(&mut self) -> Result<()> {
        if self.paused {
            self.pause(false)?;
        }
        if self.child.is_none() || self.has_ended()? { self.run() } else { Ok(()) }
    }
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32)).context("the process has ended")?;
    Ok(kill_process(pid, signal)?)
}
