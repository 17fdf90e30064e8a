//! `capstan-scheduler`: one half of a cluster. It is `capstan scheduler` by a name of its own: what is linked once need not be linked
//! three times.

use std::{io::Write, os::unix::process::CommandExt, process::ExitCode};

fn main() -> ExitCode {
    let beside = std::env::current_exe().map(|path| path.with_file_name("capstan"));
    let error = match beside {
        // Comes back only if it cannot be done.
        Ok(program) => std::process::Command::new(program).arg("scheduler").args(std::env::args_os().skip(1)).exec(),
        Err(error) => error,
    };
    let _ = writeln!(std::io::stderr(), "capstan-scheduler: the program `capstan` must lie beside it: {error}");
    ExitCode::FAILURE
}
