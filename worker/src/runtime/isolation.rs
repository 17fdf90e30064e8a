//! What this machine can keep apart, found out by doing it once.

use super::{
    init::{Birth, Init, Launcher, View},
    process::Apart,
    program::{Environment, Program},
};
use capstan_common::{
    container_spec::ContainerSpec,
    id::FunctionKey,
    isolation::{Isolation, Level, Needs},
    users::Users,
};
use rustix::process::getuid;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a plain user's worker cannot keep apart: its functions share its user.
const SHARED_USER: &str =
    "the worker's user: what that user may read, functions may, and connections from functions look like its own";
/// Megabytes that the trial may write.
const TRIAL_MIB: u32 = 1;

/// How a worker keeps its functions apart.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// What it can keep apart.
    pub isolation: Isolation,
    launcher: Arc<Launcher>,
    /// None where all are the worker's own user.
    users: Option<Users>,
    hidden: Arc<[PathBuf]>,
}

impl Keeping {
    /// Keeps nothing apart: for containers without processes.
    pub fn nothing() -> Self {
        let launcher = Arc::new(Launcher::default());
        Self { isolation: Isolation::default(), launcher, users: None, hidden: Arc::default() }
    }

    /// Tries what this machine allows. `scratch` is the worker's own folder for what functions have to themselves; `hidden` is
    /// what no function may see. Blocks for some milliseconds.
    pub fn find_out(users: Users, trusts: bool, scratch: &Path, hidden: Vec<PathBuf>) -> Self {
        let launcher = Arc::new(Launcher::default());
        let users = getuid().is_root().then_some(users);
        let mut keeping = Self { isolation: Isolation::default(), launcher, users, hidden: hidden.into() };
        let (level, not_kept_apart) = match keeping.trial(scratch) {
            Ok(()) if users.is_some() => (Level::Strict, Vec::new()),
            Ok(()) => (Level::Partial, vec![SHARED_USER.to_owned()]),
            Err(why) => {
                let all = ["users", "files", "processes", "environment"].map(|what| format!("{what} ({why})"));
                (Level::None, all.into())
            }
        };
        keeping.isolation = Isolation { level, not_kept_apart, trusts };
        keeping
    }

    fn trial(&self, scratch: &Path) -> Result<(), String> {
        let folder = scratch.join("trial");
        let program = Program { command: Vec::new(), folder: folder.clone(), env: Environment::default() };
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let apart = self.apart("trial", TRIAL_MIB);
        let birth = Birth {
            cgroups: Vec::new(),
            user: apart.user,
            view: View { scratch: folder.clone(), ..apart.view },
            program,
        };
        let tried = Init::start(&self.launcher, &birth).map(drop);
        // Empty: whatever was written in it was written in memory.
        let _ = std::fs::remove_dir(&folder);
        tried
    }

    /// How a function of a namespace is kept apart, with so much room for its files.
    fn apart(&self, namespace: &str, scratch_mib: u32) -> Apart {
        Apart {
            launcher: self.launcher.clone(),
            user: self.users.map(|users| users.of(namespace)),
            view: View { hidden: self.hidden.clone(), scratch_mib, ..View::default() },
        }
    }

    /// How a function is kept apart; not at all if it is trusted, or this machine keeps nothing apart.
    ///
    /// # Errors
    /// It needs what this worker does not give: an order that no honest scheduler sends.
    pub fn of(&self, function: &FunctionKey, spec: &ContainerSpec) -> Result<Option<Apart>, String> {
        let needs = spec.needs;
        if !self.isolation.ground().takes(needs) {
            return Err(match needs {
                Needs::Trust => "this worker runs no trusted functions: set worker.trust_functions=true on it".into(),
                _ => format!("this worker does not keep functions wholly apart ({})", self.isolation.describe()),
            });
        }
        let kept = self.isolation.level != Level::None && needs != Needs::Trust;
        Ok(kept.then(|| self.apart(&function.namespace, spec.memory_mib)))
    }
}
