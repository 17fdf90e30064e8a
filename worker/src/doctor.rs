//! What a machine can do for functions, found out by trying it.

use crate::{
    config::WorkerConfig,
    runtime::{cgroup::Cgroups, isolation::Keeping},
};
use capstan_common::{isolation::Level, users::Users};
use rustix::process::{Resource, getrlimit, getuid};
use serde::Serialize;
use std::fs;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// `yes`, `partly` or `no`.
    pub state: &'static str,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// Switches of the kernel that forbid plain users their namespaces, and the value that allows them.
const SWITCHES: [(&str, &str); 3] = [
    ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),
    ("/proc/sys/user/max_user_namespaces", "more than 0"),
];

/// Looks at this machine as a worker with these settings would.
///
/// # Errors
/// A setting is wrong, or no temporary folder can be made.
pub fn examine(config: &WorkerConfig) -> Result<Vec<Finding>, String> {
    let users = Users::read(&config.function_uids)?;
    let scratch = std::env::temp_dir().join(format!("capstan-doctor-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let isolation = Keeping::find_out(users, false, &scratch, Vec::new()).isolation;
    // Empty again, whatever was found.
    let _ = fs::remove_dir_all(&scratch);
    let cgroups = Cgroups::detect(&format!("capstan-doctor-{}", std::process::id()));
    let limits = cgroups.describe();
    let enforced = cgroups.folders().next().is_some();
    Ok(vec![
        Finding {
            what: "functions are kept apart",
            state: match isolation.level {
                Level::Strict => "yes",
                Level::Partial => "partly",
                Level::None => "no",
            },
            detail: isolation.describe(),
            help: help(isolation.level),
        },
        Finding {
            what: "each namespace is a user",
            state: if isolation.level == Level::Strict { "yes" } else { "no" },
            detail: match isolation.level {
                Level::Strict => {
                    format!("`default` is user {} (worker.function_uids={})", users.of("default"), config.function_uids)
                }
                _ => format!("all functions are user {}", getuid().as_raw()),
            },
            help: (isolation.level != Level::Strict).then(|| "run the worker as root".to_owned()),
        },
        Finding {
            what: "memory, CPU and process limits",
            state: if enforced { "yes" } else { "no" },
            detail: limits,
            help: (!enforced).then(|| {
                "give the worker a cgroup of its own: Delegate=yes in its systemd unit, or run it as root".to_owned()
            }),
        },
        memory_score(),
        open_files(),
    ])
}

fn help(level: Level) -> Option<String> {
    let shut = |(file, wanted): &(&str, &str)| {
        let value = fs::read_to_string(file).ok()?;
        let value = value.trim();
        let name = file.trim_start_matches("/proc/sys/").replace('/', ".");
        let allowed = value == *wanted || (wanted.starts_with("more") && value != "0");
        (!allowed).then(|| format!("{name} is {value}, and must be {wanted}"))
    };
    match (level, getuid().is_root()) {
        (Level::Strict, _) => None,
        (Level::Partial, _) => Some("run the worker as root to give each namespace a user of its own".into()),
        (Level::None, true) => {
            Some("the worker needs the capabilities SYS_ADMIN, SETUID, SETGID, CHOWN and FOWNER, and may not be in a container that masks /proc".into())
        }
        (Level::None, false) => {
            let shut: Vec<String> = SWITCHES.iter().filter_map(shut).collect();
            let why = if shut.is_empty() { "user namespaces are forbidden here".to_owned() } else { shut.join("; ") };
            Some(format!("{why}; or run the worker as root"))
        }
    }
}

/// How many files a worker or a scheduler that is started here may have open at once.
fn open_files() -> Finding {
    const ENOUGH: u64 = 8_192;
    let most = getrlimit(Resource::Nofile).maximum;
    let few = most.is_some_and(|most| most < ENOUGH);
    Finding {
        what: "open files for many connections",
        state: if few { "partly" } else { "yes" },
        detail: most.map_or_else(|| "as many as it likes".into(), |most| format!("at most {most} at once")),
        help: few
            .then(|| "raise the hard limit to 65536: LimitNOFILE of a systemd unit, `ulimit -Hn` of a shell".into()),
    }
}

/// Whether the kernel may be told to end functions before us.
fn memory_score() -> Finding {
    const FILE: &str = "/proc/self/oom_score_adj";
    let before = fs::read_to_string(FILE).unwrap_or_default();
    let lowered = fs::write(FILE, "-500").is_ok();
    // As it was: nobody is to be ended later because somebody looked.
    let _ = fs::write(FILE, before.trim());
    Finding {
        what: "the worker outlives want of memory",
        state: if lowered { "yes" } else { "partly" },
        detail: if lowered {
            "the kernel ends functions first, and the worker long after others".into()
        } else {
            "the kernel ends functions first; the worker cannot be put behind other programs".into()
        },
        help: (!lowered).then(|| "OOMScoreAdjust=-500 in its systemd unit, or the capability SYS_RESOURCE".to_owned()),
    }
}
