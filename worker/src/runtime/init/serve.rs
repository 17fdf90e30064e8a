//! Process 1 of a container: it starts the program, passes signals on, reaps, and ends what is left when the program has ended.

use super::{
    Answer, Ask,
    launcher::{ends_of_children, news},
    wire,
};
use crate::runtime::program::Program;
use nix::sys::signal::kill;
use rustix::{
    fs::statfs,
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

/// Tables of memory that is shared by name, in a namespace of its own.
const IPC: [&str; 3] = ["/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg"];
/// Bytes of the reason why a program did not start.
const REASON_MAX: usize = 4 << 10;

/// Serves until the worker is gone.
pub fn serve(worker: &UnixStream, program: &Program) -> io::Result<()> {
    let ended = ends_of_children()?;
    let traces = Traces::open();
    let clean = traces.left_behind();
    let mut running: Option<Pid> = None;
    loop {
        let (asked, children) = news(worker, &ended)?;
        if children {
            while ended.read_signal()?.is_some() {}
            if let Some(status) = reap(&mut running) {
                end_all();
                let (code, signal) = (status.exit_status(), status.terminating_signal());
                let used = traces.left_behind() != clean;
                wire::send(worker, &Answer::Ended { code, signal, used }, &[], false)?;
            }
        }
        if asked {
            let Some((ask, fds)) = wire::receive::<Ask>(worker, wire::ASK_MAX)? else { return Ok(()) };
            match ask {
                Ask::Run(more) => {
                    // One that runs is told of when it has ended: a word less, and a waking less of the worker.
                    match start(program, more, fds) {
                        Ok(pid) => running = Some(pid),
                        Err(why) => {
                            let why = capstan_common::input::end_of(&why, REASON_MAX).to_owned();
                            wire::send(worker, &Answer::NotStarted(why), &[], false)?;
                        }
                    }
                }
                Ask::Signal(number) => {
                    if let (Some(pid), Some(signal)) = (running, Signal::from_named_raw(number)) {
                        // Its own group, with what it started there; gone is fine.
                        let _ = kill_process_group(pid, signal);
                    }
                }
            }
        }
    }
}

fn start(program: &Program, more: BTreeMap<String, String>, fds: Vec<OwnedFd>) -> Result<Pid, String> {
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(fds).map_err(|_| "its three descriptors did not come along".to_owned())?;
    let seen = Path::to_path_buf;
    let found = program.find(seen).unwrap_or_else(|| PathBuf::from(program.name()));
    let mut command = program.command(&found);
    command.envs(more).stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    let child = command.spawn().map_err(|error| program.not_started(&error, seen))?;
    Ok(Pid::from_child(&child))
}

/// Takes note of all that has ended; answers how the program did, if it is among them.
fn reap(running: &mut Option<Pid>) -> Option<WaitStatus> {
    let mut over = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if *running == Some(pid) {
            *running = None;
            over = Some(status);
        }
    }
    over
}

/// Ends everything in the namespace but ourselves: nothing can be born while the kernel goes through it.
fn end_all() {
    // Nobody left is fine.
    let _ = kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
    while wait(WaitOptions::empty()).is_ok() {}
}

/// What a program can leave behind here: files of its scratch, of /tmp and of /dev/shm, and shared memory.
struct Traces([Option<File>; 3]);

impl Traces {
    fn open() -> Self {
        Self(IPC.map(|table| File::open(table).ok()))
    }

    fn left_behind(&self) -> (Option<u64>, [usize; 3]) {
        let files = statfs("/dev/shm").ok().map(|found| found.f_ffree);
        let mut table = [0; 4096];
        let mut length = |file: &Option<File>| file.as_ref().and_then(|file| file.read_at(&mut table, 0).ok());
        let lengths = [0, 1, 2].map(|n| length(&self.0[n]).unwrap_or_default());
        (files, lengths)
    }
}
