//! What a function's user can reach, where functions run on this machine: a spec that names something else is refused when it is
//! deployed, and not when its first input has waited for it.

use super::Api;
use crate::config::Here;
use capstan_common::{
    function::{FunctionSpec, Runtime},
    id::FunctionKey,
    refusal::{Code, FieldError, Refusal},
};
use std::{
    fs::{self, Metadata},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a worker may take to find out what it can keep apart.
const TRIES: Duration = Duration::from_secs(5);
/// To pass a folder, or to run a program.
const PASS: u32 = 0o1;
/// To read a file.
const READ: u32 = 0o4;

impl Api {
    /// Refuses a spec that names files which its function's user cannot reach on this machine.
    ///
    /// # Errors
    /// The path, and the first folder on the way that is closed.
    pub async fn must_reach(&self, key: &FunctionKey, spec: &FunctionSpec) -> Result<(), Refusal> {
        let Some(here) = self.config.here.clone().filter(|_| !spec.trusted) else { return Ok(()) };
        // Right after the start the worker may still be trying. One that takes so long has other troubles, which it tells of.
        if !tokio::time::timeout(TRIES, here.strict.wait()).await.is_ok_and(|strict| *strict) {
            return Ok(());
        }
        let (namespace, spec) = (key.namespace.clone(), spec.clone());
        let looking = tokio::task::spawn_blocking(move || out_of_reach(&here, &namespace, &spec));
        let errors = looking.await.map_err(|_| Refusal::new(Code::Unavailable, "the scheduler ends"))?;
        if errors.is_empty() { Ok(()) } else { Err(Refusal { code: Code::Unreachable, ..Refusal::fields(errors) }) }
    }
}

fn out_of_reach(here: &Here, namespace: &str, spec: &FunctionSpec) -> Vec<FieldError> {
    let Runtime::Process(process) = &spec.runtime else { return Vec::new() };
    let user = here.users.of(namespace);
    let words = process.command.iter().enumerate().map(|(n, word)| (format!("command/{n}"), word, n == 0));
    let folder = process.working_dir.iter().map(|word| ("working_dir".to_owned(), word, false));
    let in_a_volume = |path: &Path| spec.volumes.keys().any(|seen| path.starts_with(seen));
    words
        .chain(folder)
        .filter(|(_, word, _)| word.starts_with('/') && !in_a_volume(Path::new(word)))
        .filter_map(|(field, word, program)| {
            let why = closed_on_the_way(Path::new(word), user, program, &here.hidden)?;
            let detail = format!(
                "`{word}` is out of reach for functions of namespace `{namespace}`, which run as a user of their own: {why}, or move what \
                 the function needs to where every user may read it; an admin may deploy it with `trusted: true`"
            );
            Some(FieldError { pointer: format!("/runtime/process/{field}"), detail })
        })
        .collect()
}

/// What is in the way of a user to a path, if it is there and something is.
fn closed_on_the_way(path: &Path, user: u32, program: bool, hidden: &[PathBuf]) -> Option<String> {
    // What is not there is told when it is started: it may come.
    let real = fs::canonicalize(path).ok()?;
    if let Some(folder) = hidden.iter().find(|folder| real.starts_with(folder)) {
        return Some(format!("functions do not see `{}`: choose another folder", folder.display()));
    }
    for way in [path, &real] {
        let mut folders: Vec<&Path> = way.ancestors().skip(1).collect();
        folders.reverse();
        for folder in folders {
            if !may(&fs::metadata(folder).ok()?, user, PASS) {
                return Some(format!("the folder `{0}` is closed to it; open that (chmod o+x {0})", folder.display()));
            }
        }
    }
    let found = fs::metadata(&real).ok()?;
    let (needed, letters) = match (found.is_dir(), program) {
        (true, _) => (PASS, "x"),
        (false, true) => (PASS, "rx"),
        (false, false) => (READ, "r"),
    };
    // What nobody may run is no matter of rights, and told when it is started.
    let nobody = program && found.is_file() && found.permissions().mode() & 0o111 == 0;
    let closed = !nobody && !may(&found, user, needed);
    closed.then(|| format!("its mode keeps others out; open it (chmod o+{letters} {})", real.display()))
}

/// Whether a user, of no group but its own, may do this to a file.
fn may(found: &Metadata, user: u32, what: u32) -> bool {
    let mode = found.permissions().mode();
    let shift = if found.uid() == user {
        6
    } else if found.gid() == user {
        3
    } else {
        0
    };
    mode >> shift & what == what
}

#[cfg(test)]
mod tests {
    use super::*;
    use capstan_common::users::Users;
    use serde_json::json;

    #[test]
    fn what_is_closed_is_named_with_the_first_folder_and_what_is_open_passes() {
        let base = tempfile::tempdir().unwrap();
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        open(base.path(), 0o755);
        let at = |name: &str| base.path().join(name);
        for (name, mode) in [("open", 0o755), ("closed", 0o700), ("data", 0o755)] {
            fs::create_dir(at(name)).unwrap();
            for (file, mode) in [("run", 0o755), ("read", 0o644), ("secret", 0o600), ("own", 0o700)] {
                fs::write(at(name).join(file), "").unwrap();
                open(&at(name).join(file), mode);
            }
            open(&at(name), mode);
        }
        let here = Here {
            users: Users::read("200000-300000").unwrap(),
            hidden: vec![fs::canonicalize(at("data")).unwrap()],
            strict: Default::default(),
        };
        let errors = |command: &[&str], folder: Option<&str>, volumes: serde_json::Value| {
            let full =
                |name: &&str| if name.contains('/') { at(name).display().to_string() } else { (*name).to_owned() };
            let command: Vec<String> = command.iter().map(full).collect();
            let process = json!({"command": command, "working_dir": folder.map(&at)});
            let spec = json!({"runtime": {"process": process}, "volumes": volumes});
            out_of_reach(&here, "ns", &serde_json::from_value(spec).unwrap())
        };
        let none = json!({});
        assert!(errors(&["open/run", "open/read", "open/not-there"], Some("open"), none.clone()).is_empty());
        assert!(errors(&["sh", "-c", "cat /root/x"], None, none.clone()).is_empty());
        for (command, folder, pointer, why) in [
            (&["closed/run"][..], None, "/runtime/process/command/0", "/closed` is closed to it"),
            (&["sh", "open/secret"], None, "/runtime/process/command/1", "chmod o+r "),
            (&["open/own"], None, "/runtime/process/command/0", "chmod o+rx "),
            (&["sh"], Some("closed"), "/runtime/process/working_dir", "chmod o+x "),
            (&["sh", "data/read"], None, "/runtime/process/command/1", "do not see"),
        ] {
            let found = errors(command, folder, none.clone());
            assert!(
                found.len() == 1 && found[0].pointer == pointer && found[0].detail.contains(why),
                "{command:?} {found:?}"
            );
        }
        let volumes = json!({at("closed").to_str().unwrap(): "v"});
        assert!(errors(&["closed/run"], None, volumes).is_empty(), "a volume lies there");
    }
}
