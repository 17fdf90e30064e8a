//! Golden scenarios: small scripts of what happens, with what Capstan decides and why, as text. A change of policy is a diff of them.
//!
//! A script's lines begin at the margin, what came of each is indented below it (see [`script`] for the words). `BLESS=1` writes what
//! comes now into the files.

mod cluster;
mod containers;
mod script;
mod tell;

use std::{collections::BTreeSet, fs, path::PathBuf};

/// Fewer than these are too few to see a policy in.
const LEAST: usize = 30;

fn scripts() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenario");
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    found.sort();
    found
}

#[test]
fn every_scenario_is_decided_as_it_is_written() {
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    let scripts = scripts();
    assert!(scripts.len() >= LEAST, "{} scenarios", scripts.len());
    for path in scripts {
        let written = fs::read_to_string(&path).unwrap();
        println!("{}", path.display());
        let played = script::play(&written).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(seen.insert(played.clone()), "{} is another scenario once more", path.display());
        if played == written {
            continue;
        }
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, played).unwrap();
            continue;
        }
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (written, played) = (lines(&written), lines(&played));
        let at = written.iter().zip(&played).take_while(|(one, other)| one == other).count();
        let line = |text: &[String]| text.get(at).cloned().unwrap_or_else(|| "(the end)".into());
        wrong.push(format!(
            "{} line {}:\n  written: {}\n  decided: {}",
            path.display(),
            at + 1,
            line(&written),
            line(&played)
        ));
    }
    assert!(
        wrong.is_empty(),
        "{}\nIf that is what is meant: BLESS=1 cargo test -p capstan-tests --test scenario, and read the diff",
        wrong.join("\n")
    );
}
