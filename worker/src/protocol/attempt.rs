//! One attempt's program in an exec slot: a program of the slot's init, or a child of the worker where nothing is kept apart.

use crate::runtime::{
    init::{Control, Init, Word},
    process::{Setting, kill_group, pid_of},
    tree,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

/// How long the kernel may take to end what was killed.
const DEATH: Duration = Duration::from_secs(2);

/// An exit code or the signal that ended it; neither if that is not known.
pub type Status = (Option<i32>, Option<i32>);

/// How other threads reach an attempt's program.
#[derive(Debug, Clone)]
pub enum Handle {
    /// A child of ours, by its group.
    Group(Pid),
    /// The init of its slot.
    Init(Arc<Control>),
}

impl Handle {
    /// Asks it to end.
    pub fn terminate(&self) {
        match self {
            Self::Group(pid) => tree::signal_group(*pid, Signal::TERM),
            Self::Init(control) => control.signal(Signal::TERM),
        }
    }

    /// Ends it.
    pub fn kill(&self) {
        match self {
            Self::Group(pid) => kill_group(*pid),
            Self::Init(control) => control.kill(),
        }
    }
}

/// A program that runs.
pub struct Attempt<'a> {
    kind: Kind<'a>,
    /// What it writes.
    pub stdout: Option<OwnedFd>,
    /// What it complains of.
    pub stderr: Option<OwnedFd>,
}

enum Kind<'a> {
    Child {
        child: Child,
        exited: OwnedFd,
        mark: String,
    },
    /// The slot is emptied when its init is of no use any more.
    Init(&'a mut Option<Init>),
}

/// Starts a program with this standard input; `mark` is in the environment of a child of ours.
///
/// # Errors
/// Why it cannot be started, in words.
pub fn start<'a>(
    setting: &Setting,
    slot: &'a mut Option<Init>,
    mut more: BTreeMap<&str, String>,
    mark: String,
    stdin: OwnedFd,
) -> Result<Attempt<'a>, String> {
    let piped = || io::pipe().map_err(|error| format!("a pipe cannot be made: {error}"));
    let ((stdout, out), (stderr, err)) = (piped()?, piped()?);
    if slot.is_none()
        && let Some(made) = setting.init()
    {
        *slot = Some(made?);
    }
    let kind = if let Some(init) = slot.as_ref() {
        let more = more.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        if let Err(why) = init.run(more, [stdin.as_fd(), out.as_fd(), err.as_fd()]) {
            *slot = None;
            return Err(why);
        }
        Kind::Init(slot)
    } else {
        more.insert(tree::ATTEMPT, mark.clone());
        let mut command = setting.command(&more);
        command.stdin(Stdio::from(stdin)).stdout(out).stderr(err);
        let child = setting.spawn(command).map_err(|error| setting.not_started(&error))?;
        let exited = pidfd_open(pid_of(&child), PidfdFlags::empty()).map_err(|e| e.to_string())?;
        Kind::Child { child, exited, mark }
    };
    Ok(Attempt { kind, stdout: Some(stdout.into()), stderr: Some(stderr.into()) })
}

impl Attempt<'_> {
    /// How others reach it.
    pub fn handle(&self) -> Option<Handle> {
        match &self.kind {
            Kind::Child { child, .. } => Some(Handle::Group(pid_of(child))),
            Kind::Init(slot) => slot.as_ref().map(|init| Handle::Init(init.control().clone())),
        }
    }

    /// What becomes readable when it has ended.
    pub fn exited(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Child { exited, .. } => Some(exited.as_fd()),
            Kind::Init(slot) => slot.as_ref().map(Init::socket),
        }
    }

    /// Ends it and whatever it has started, if that has not happened. `cut_off`: it was made to end. How it ended.
    ///
    /// # Errors
    /// Why it was never started.
    pub fn end(self, cut_off: bool) -> Result<Status, String> {
        match self.kind {
            Kind::Child { mut child, exited, mark } => {
                kill_group(pid_of(&child));
                if cut_off {
                    // It may have left its process group, and what it left behind too.
                    let _ = pidfd_send_signal(&exited, Signal::KILL);
                    tree::kill_marked(tree::ATTEMPT, &mark);
                }
                Ok(wait(&mut child, &exited))
            }
            Kind::Init(slot) => {
                if cut_off {
                    // It may have ended in time; whether it has is not worth waiting for.
                    *slot = None;
                    return Ok((None, Some(Signal::KILL.as_raw())));
                }
                match slot.as_ref().map(Init::hear) {
                    Some(Word::Ended(code, signal, used)) => {
                        if used {
                            *slot = None;
                        }
                        Ok((code, signal))
                    }
                    Some(Word::NotStarted(why)) => Err(why),
                    Some(Word::Gone) | None => {
                        *slot = None;
                        Ok((None, Some(Signal::KILL.as_raw())))
                    }
                }
            }
        }
    }
}

/// Waits for a child that has ended or was killed, for as long as the kernel can reasonably take.
fn wait(child: &mut Child, exited: &OwnedFd) -> Status {
    let limit = Timespec { tv_sec: DEATH.as_secs() as i64, tv_nsec: 0 };
    if poll(&mut [PollFd::new(exited, PollFlags::IN)], Some(&limit)) == Ok(0) {
        tracing::error!(pid = child.id(), "a killed process does not end: the kernel holds it");
        return (None, Some(Signal::KILL.as_raw()));
    }
    child.wait().map_or((None, None), |status| (status.code(), status.signal()))
}
