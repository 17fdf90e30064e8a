//! The launcher: a small process with one thread beside the worker. A copy of it becomes an init in a fraction of a millisecond,
//! where starting this program anew would take four.

use super::{Answer, Birth, birth, wire};
use fork::Fork;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{WaitOptions, set_child_subreaper, wait},
};
use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// The first argument that makes a Capstan binary a launcher.
const ARGUMENT: &str = "__launcher";

/// Becomes the launcher if the command line asks for it.
pub fn run_if_asked() {
    if std::env::args_os().nth(1).is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let code = match launch_until_the_end() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("capstan: the launcher of inits ends: {error}");
            1
        }
    };
    std::process::exit(code);
}

fn launch_until_the_end() -> io::Result<()> {
    let worker = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Inits are the children of copies that end at once: they come to us, and nobody is left behind as a zombie.
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let ended = ends_of_children()?;
    loop {
        let (asked, children) = news(&worker, &ended)?;
        if children {
            // Only to empty it: who has ended is asked of the kernel.
            while ended.read_signal()?.is_some() {}
            while wait(WaitOptions::NOHANG).is_ok_and(|found| found.is_some()) {}
        }
        if asked {
            let Some((birth, fds)) = wire::receive::<Birth>(&worker, wire::ASK_MAX)? else { return Ok(()) };
            let Some(socket) = fds.into_iter().next() else { continue };
            let socket = UnixStream::from(socket);
            match fork::fork() {
                Ok(Fork::Parent(_)) => {}
                Ok(Fork::Child) => {
                    // Nothing of the launcher's goes further: its own socket would let whoever has it ask for inits.
                    rustix::stdio::dup2_stdin(&socket)?;
                    drop((worker, ended));
                    birth::bear(&socket, birth);
                }
                Err(error) => {
                    let told = Answer::Failed(format!("no process can be made for it: {error}"));
                    // The worker may have given up.
                    let _ = wire::send(&socket, &told, &[], true);
                }
            }
        }
    }
}

/// Waits for something to read. Whether the worker asks, and whether a child has ended.
pub(super) fn news(worker: &UnixStream, ended: &SignalFd) -> io::Result<(bool, bool)> {
    let mut fds = [PollFd::new(worker, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty())),
        Err(error) => Err(error.into()),
    }
}

/// A descriptor that can be read when a child has ended.
pub(super) fn ends_of_children() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// The way to a worker's launcher; one that has ended is started anew.
#[derive(Debug, Default)]
pub struct Launcher(Mutex<Option<(Child, UnixStream)>>);

impl Launcher {
    /// Asks for an init, which will speak over `socket`.
    ///
    /// # Errors
    /// No launcher can be started.
    pub(super) fn ask(&self, birth: &Birth, socket: OwnedFd) -> io::Result<()> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..2 {
            let (_, way) = match &mut *running {
                Some(running) => running,
                None => running.insert(Self::start()?),
            };
            if wire::send(way, birth, &[socket.as_fd()], false).is_ok() {
                return Ok(());
            }
            Self::end(running.take());
        }
        Err(io::Error::other("the launcher of inits has ended twice"))
    }

    fn start() -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        // Ourselves even after an upgrade has replaced the file.
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).env_clear().stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // A signal to the worker's terminal must not reach it.
        let child = command.process_group(0).current_dir("/").spawn()?;
        Ok((child, ours))
    }

    fn end(running: Option<(Child, UnixStream)>) {
        if let Some((mut child, way)) = running {
            drop(way);
            // Gone already, most likely.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        Self::end(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
