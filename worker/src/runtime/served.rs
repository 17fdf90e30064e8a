//! A server's processes, from its start to its end: under an init of its own, or as a child of the worker where nothing is kept
//! apart.

use super::{
    init::{Init, Word},
    process::{Setting, kill_group},
    tree,
};
use rustix::process::{Pid, Signal};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::{UnixStream, unix::pipe::Receiver},
    process::Child,
};

/// How long the kernel may take to end what was killed.
const DEATH: Duration = Duration::from_secs(2);

/// An exit code or the signal that ended it; neither if that is not known.
type Status = (Option<i32>, Option<i32>);

/// A server that was started.
pub struct Served {
    kind: Kind,
    ended: Option<Status>,
    /// Why it was never started, if that is how it ended.
    pub not_started: Option<String>,
    /// What it writes.
    pub stdout: Option<Receiver>,
    /// What it complains of.
    pub stderr: Option<Receiver>,
}

enum Kind {
    Child(Child, Pid),
    Init(Init, UnixStream),
}

impl Served {
    /// Starts it.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub async fn start(setting: Arc<Setting>, more: BTreeMap<&'static str, String>) -> Result<Self, String> {
        let starting = tokio::task::spawn_blocking(move || {
            let piped = || io::pipe().map_err(|error| format!("a pipe cannot be made: {error}"));
            let ((stdout, out), (stderr, err)) = (piped()?, piped()?);
            let kind = match setting.init() {
                None => Kind::child(&setting, &more, out.into(), err.into())?,
                Some(init) => {
                    let init = init?;
                    let nothing = File::open("/dev/null").map_err(|e| e.to_string())?;
                    let more = more.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                    init.run(more, [nothing.as_fd(), out.as_fd(), err.as_fd()])?;
                    Kind::init(init).map_err(|e| e.to_string())?
                }
            };
            let read = |pipe: OwnedFd| Receiver::from_owned_fd(pipe).map_err(|e| e.to_string());
            let (stdout, stderr) = (Some(read(stdout.into())?), Some(read(stderr.into())?));
            Ok(Self { kind, ended: None, not_started: None, stdout, stderr })
        });
        starting.await.map_err(|error| error.to_string())?
    }

    /// Its number, as the machine knows it; that of its init where it has one.
    pub fn pid(&self) -> u32 {
        match &self.kind {
            Kind::Child(_, pid) => pid.as_raw_nonzero().get().unsigned_abs(),
            Kind::Init(init, _) => init.control().pid(),
        }
    }

    /// Comes back when the program has ended.
    pub async fn ended(&mut self) -> Status {
        if let Some(status) = self.ended {
            return status;
        }
        let status = match &mut self.kind {
            Kind::Child(child, _) => {
                let status = child.wait().await;
                status.map_or((None, None), |status| (status.code(), status.signal()))
            }
            Kind::Init(init, said) => {
                // What is said is a few bytes, sent at once: whoever sees it begin has it.
                match said.async_io(Interest::READABLE, || init.try_hear()).await {
                    Ok(Word::Ended(code, signal, _)) => (code, signal),
                    Ok(Word::NotStarted(why)) => {
                        self.not_started = Some(why);
                        (None, None)
                    }
                    _ => (None, Some(Signal::KILL.as_raw())),
                }
            }
        };
        self.ended = Some(status);
        status
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        match &self.kind {
            Kind::Child(_, pid) => tree::signal_group(*pid, Signal::TERM),
            Kind::Init(init, _) => init.control().signal(Signal::TERM),
        }
    }

    /// Ends it and all that it has started, and waits for that as long as the kernel can reasonably take. How it ended.
    pub async fn end(mut self, setting: Arc<Setting>) -> Status {
        match &mut self.kind {
            Kind::Child(child, pid) => {
                kill_group(*pid);
                // It may have joined another group.
                let _ = child.start_kill();
            }
            Kind::Init(init, _) => {
                if self.ended.is_none() {
                    init.control().kill();
                }
            }
        }
        let killing = tokio::task::spawn_blocking(move || setting.kill_rest());
        let _ = killing.await;
        let Ok(status) = tokio::time::timeout(DEATH, self.ended()).await else {
            tracing::error!(pid = self.pid(), "a killed server does not end: the kernel holds it");
            return (None, Some(Signal::KILL.as_raw()));
        };
        // An init that is dropped is waited for.
        let dropping = tokio::task::spawn_blocking(move || drop(self));
        let _ = dropping.await;
        status
    }
}

impl Kind {
    fn init(init: Init) -> io::Result<Self> {
        let said = std::os::unix::net::UnixStream::from(init.socket().try_clone_to_owned()?);
        said.set_nonblocking(true)?;
        Ok(Self::Init(init, UnixStream::from_std(said)?))
    }

    fn child(
        setting: &Setting,
        more: &BTreeMap<&'static str, String>,
        out: OwnedFd,
        err: OwnedFd,
    ) -> Result<Self, String> {
        if let Some(obstacle) = setting.obstacle() {
            return Err(obstacle);
        }
        let mut command = setting.command(more);
        command.stdout(out).stderr(err);
        let child = setting.spawn_watched(command).map_err(|error| setting.not_started(&error))?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self::Child(child, pid.ok_or("it ended at once")?))
    }
}
