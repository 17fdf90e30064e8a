//! Why a program does not start, in words that name it: the kernel's answer names neither the file nor its interpreter.

use rustix::{
    fs::{Access, access},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Bytes of a program that are looked at for its first line, as many as Linux itself reads.
const LINE_BYTES: u64 = 256;

/// What stands in the way of a program at this path, if that can be seen from outside.
pub fn in_the_way(shown: &str, path: &Path) -> Option<String> {
    if let Some(closed) = closed(path) {
        return Some(closed);
    }
    let Ok(found) = path.metadata() else {
        return Some(format!("`{shown}` is not a file on this worker"));
    };
    if found.is_dir() {
        return Some(format!("`{shown}` is a folder, not a program"));
    }
    if found.permissions().mode() & 0o111 == 0 {
        return Some(format!("`{shown}` may not be executed: make it so with chmod +x"));
    }
    if access(path, Access::EXEC_OK).is_err() {
        return Some(format!("`{shown}` may not be executed by the function's user: allow it with chmod o+rx"));
    }
    interpreter(shown, path)
}

/// What is wrong with the interpreter that a script names in its first line.
fn interpreter(shown: &str, path: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(LINE_BYTES).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let name = line.trim_start_matches([' ', '\t']).split([' ', '\t']).next()?;
    if let Some(unix) = name.strip_suffix('\r') {
        return Some(format!(
            "the first line of `{shown}` ends as Windows ends lines, so that its interpreter is `{unix}\\r`: save it with Unix line ends"
        ));
    }
    let missing = !Path::new(name).is_file();
    missing.then(|| format!("`{shown}` names `{name}` in its first line, which is not a program on this worker"))
}

/// Why a path cannot be reached by whoever asks: the first folder on the way that is closed to them.
pub fn closed(path: &Path) -> Option<String> {
    let mut folders: Vec<&Path> = path.ancestors().skip(1).collect();
    folders.reverse();
    let denied = |folder: &&&Path| access(**folder, Access::EXEC_OK) == Err(Errno::ACCESS);
    let folder = folders.iter().find(denied)?;
    Some(format!(
        "`{}` cannot be reached: the folder `{}` is closed to the function's user; open it (chmod o+rx), or move what the function \
         needs to where every user may read it",
        path.display(),
        folder.display()
    ))
}

/// Why the kernel did not start a process.
pub fn not_started(name: &str, error: &io::Error) -> String {
    let more = match Errno::from_io_error(error) {
        Some(Errno::TOOBIG) => {
            ": arguments and environment are too long for Linux (128 KiB each, 2 MiB in all); pass it as the input"
        }
        Some(Errno::TXTBSY) => ": somebody still writes it",
        Some(Errno::NOEXEC) => ": it is neither a program for this machine nor a script that begins with #!",
        _ => "",
    };
    format!("`{name}` cannot be started: {error}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};

    #[test]
    fn what_is_in_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            write(&path, text).unwrap();
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            in_the_way(name, &path).unwrap_or_default()
        };
        for (name, text, mode, told) in [
            ("plain", "#!/bin/sh\necho 1\n", 0o644, "may not be executed"),
            ("lost", "#! /no/such/interpreter -x\n", 0o755, "names `/no/such/interpreter`"),
            ("dos", "#!/bin/sh\r\necho 1\r\n", 0o755, "`/bin/sh\\r`"),
            ("good", "#!/bin/sh\necho 1\n", 0o755, ""),
            ("binary", "\u{7f}ELF", 0o755, ""),
        ] {
            let seen = script(name, text, mode);
            assert!(seen.contains(told) && seen.is_empty() == told.is_empty(), "{name}: {seen}");
        }
        assert!(in_the_way("x", &folder.path().join("x")).unwrap().contains("`x` is not a file"));
        assert!(in_the_way("y", folder.path()).unwrap().contains("is a folder"));
    }
}
