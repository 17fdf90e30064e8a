//! Process 1: in an image nobody but us takes note of orphans that have ended. So whoever is started as process 1 starts itself
//! again, passes signals on, reaps, and ends as its child did.

use fork::Fork;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::process::{Pid, Signal as Named, WaitOptions, WaitStatus, getpid, kill_process, wait};

/// What a shell answers for a child that a signal ended: this and the signal's number.
const BY_SIGNAL: i32 = 128;
/// What is passed on.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Comes back in a child if this is process 1, and at once otherwise.
pub fn step_aside_if_first() {
    if !getpid().is_init() {
        return;
    }
    let mut set = SigSet::empty();
    PASSED_ON.into_iter().chain([Signal::SIGCHLD]).for_each(|signal| set.add(signal));
    // Before there is a child: what comes in between is passed on all the same.
    if set.thread_block().is_err() {
        return;
    }
    match fork::fork() {
        Ok(Fork::Parent(child)) => std::process::exit(look_after(child, &set)),
        // As it was before.
        Ok(Fork::Child) | Err(_) => drop(set.thread_unblock()),
    }
}

/// Until the child has ended. Its exit code.
fn look_after(child: i32, set: &SigSet) -> i32 {
    let Some(child) = Pid::from_raw(child) else { return 1 };
    let Ok(signals) = SignalFd::with_flags(set, SfdFlags::SFD_CLOEXEC) else { return 1 };
    loop {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == child {
                return code_of(status);
            }
        }
        let Ok(Some(heard)) = signals.read_signal() else { continue };
        let passed = Named::from_named_raw(heard.ssi_signo.cast_signed());
        if let Some(signal) = passed.filter(|signal| *signal != Named::CHILD) {
            // Gone just now: its end is read next.
            let _ = kill_process(child, signal);
        }
    }
}

fn code_of(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| Some(BY_SIGNAL + status.terminating_signal()?)).unwrap_or(1)
}
