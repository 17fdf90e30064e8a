//! The worker's side of an init.

use super::{Answer, Ask, Birth, Launcher, wire};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, pidfd_send_signal},
};
use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

/// How long an init may take to be born.
const BIRTH: Duration = Duration::from_secs(20);
/// How long the kernel may take to end what was killed.
const DEATH: Duration = Duration::from_secs(2);

/// A way to an init that any thread may use.
#[derive(Debug)]
pub struct Control {
    socket: UnixStream,
    process: OwnedFd,
    pid: u32,
}

impl Control {
    /// Sends a signal to what runs; one that cannot be sent is followed by a kill, so nothing rests on it.
    pub fn signal(&self, signal: Signal) {
        let _ = wire::send(&self.socket, &Ask::Signal(signal.as_raw()), &[], true);
    }

    /// Kills the init, and with it everything that it started.
    pub fn kill(&self) {
        // Gone already: nothing to do.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Its number, as the machine knows it.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// What an init says while a program runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// The program has ended, with a code or by a signal; whether something was left behind.
    Ended(Option<i32>, Option<i32>, bool),
    /// It could not be started.
    NotStarted(String),
    /// The init itself is gone.
    Gone,
}

/// An init; killed when dropped.
#[derive(Debug)]
pub struct Init {
    control: Arc<Control>,
}

impl Init {
    /// Starts one. Blocks for as long as that takes.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub fn start(launcher: &Launcher, birth: &Birth) -> Result<Self, String> {
        let told = |error: io::Error| format!("the function's init cannot be started: {error}");
        let (socket, theirs) = UnixStream::pair().map_err(told)?;
        socket.set_read_timeout(Some(BIRTH)).map_err(told)?;
        launcher.ask(birth, theirs.into()).map_err(told)?;
        // Its parent names it and it says that it is ready, in either order.
        let (mut born, mut ready) = (None, false);
        loop {
            match receive(&socket).map_err(told)? {
                (Answer::Born(pid), Some(process)) => born = Some((pid.unsigned_abs(), process)),
                (Answer::Ready, _) => ready = true,
                (Answer::Failed(why), _) => return Err(why),
                _ => return Err("the function's init speaks another language".into()),
            }
            if ready && let Some((pid, process)) = born.take() {
                return Ok(Self { control: Arc::new(Control { socket, process, pid }) });
            }
        }
    }

    /// Asks for the program, with more in its environment and its three descriptors. What becomes of it is heard.
    ///
    /// # Errors
    /// The init is gone.
    pub fn run(&self, more: BTreeMap<String, String>, fds: [BorrowedFd<'_>; 3]) -> Result<(), String> {
        let sent = wire::send(&self.control.socket, &Ask::Run(more), &fds, false);
        sent.map_err(|error| format!("the function's init is gone: {error}"))
    }

    /// What it says next; blocks until it does.
    pub fn hear(&self) -> Word {
        self.try_hear().unwrap_or(Word::Gone)
    }

    /// The same for whoever has made its socket one that does not block.
    ///
    /// # Errors
    /// It has said nothing yet.
    pub fn try_hear(&self) -> io::Result<Word> {
        match receive(&self.control.socket) {
            Ok((Answer::Ended { code, signal, used }, _)) => Ok(Word::Ended(code, signal, used)),
            Ok((Answer::NotStarted(why), _)) => Ok(Word::NotStarted(why)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(Word::Gone),
        }
    }

    /// What becomes readable when it says something.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.control.socket.as_fd()
    }

    /// The way to it.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.control.kill();
        let limit = Timespec { tv_sec: DEATH.as_secs() as i64, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&self.control.process, PollFlags::IN)], Some(&limit));
        if ended == Ok(0) {
            tracing::error!(pid = self.control.pid, "a function's processes do not end: the kernel holds them");
        }
    }
}

fn receive(socket: &UnixStream) -> io::Result<(Answer, Option<OwnedFd>)> {
    let (answer, fds) = wire::receive(socket, wire::ANSWER_MAX)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((answer, fds.into_iter().next()))
}
