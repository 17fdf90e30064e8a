//! How a copy of the launcher becomes an init: cgroup, namespaces, view, and at last a user without rights.

use super::{Answer, Birth, serve, wire};
use crate::runtime::process::OOM_SCORE;
use fork::Fork;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};
use rustix::{
    process::{
        DumpableBehavior, PidfdFlags, Resource, Rlimit, getgid, getuid, pidfd_open, set_dumpable_behavior, setrlimit,
        setsid,
    },
    thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs},
};
use std::{
    fs, io,
    os::{fd::AsFd, unix::net::UnixStream},
};

/// Becomes an init that speaks over `socket`. Does not come back.
pub fn bear(socket: &UnixStream, birth: Birth) -> ! {
    if let Err(why) = split(socket, birth) {
        // The worker may have given up.
        let _ = wire::send(socket, &Answer::Failed(why), &[], false);
    }
    std::process::exit(0);
}

/// Makes the namespaces; the child is process 1 in them.
fn split(socket: &UnixStream, birth: Birth) -> Result<(), String> {
    for folder in &birth.cgroups {
        let procs = folder.join("cgroup.procs");
        fs::write(&procs, "0").map_err(|e| format!("the cgroup {} cannot be entered: {e}", folder.display()))?;
    }
    // Always allowed: it makes us likelier to go, not less likely.
    fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(|e| format!("oom_score_adj cannot be raised: {e}"))?;
    namespaces(birth.user.is_none()).map_err(|e| format!("namespaces cannot be made: {e}"))?;
    match fork::fork().map_err(|e| format!("process 1 cannot be made: {e}"))? {
        Fork::Parent(child) => {
            let pid = rustix::process::Pid::from_raw(child).ok_or("process 1 has no number")?;
            let itself = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| format!("process 1 cannot be held: {e}"))?;
            wire::send(socket, &Answer::Born(child), &[itself.as_fd()], false).map_err(|e| e.to_string())
        }
        Fork::Child => {
            settle(&birth)?;
            wire::send(socket, &Answer::Ready, &[], false).map_err(|e| e.to_string())?;
            serve::serve(socket, &birth.program).map_err(|e| format!("it ends: {e}"))
        }
    }
}

fn namespaces(of_a_plain_user: bool) -> io::Result<()> {
    let common = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if !of_a_plain_user {
        return Ok(unshare(common)?);
    }
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER | common)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Puts everything in its place and gives up all rights.
fn settle(birth: &Birth) -> Result<(), String> {
    // Without a terminal, and in a session that nothing outside is in.
    setsid().map_err(|e| format!("a session cannot be made: {e}"))?;
    birth.view.mount(birth.user)?;
    let told = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|e| format!("core files cannot be forbidden: {e}"))?;
    become_user(birth.user).map_err(told("the function's user cannot be taken on"))?;
    // Nobody of the same user looks into it or holds it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| told("it cannot be closed to others")(e.into()))
}

fn become_user(user: Option<u32>) -> io::Result<()> {
    // While we may: what is not in this set can never come back, whatever is executed.
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(user) = user {
        setgroups(&[])?;
        setgid(Gid::from_raw(user))?;
        setuid(Uid::from_raw(user))?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    set_no_new_privs(true)?;
    Ok(())
}
