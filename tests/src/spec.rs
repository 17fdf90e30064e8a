//! Which test proves which statement of the specification: read from the `// SPEC …` lines of the sources.

use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

/// Groups of statements: letter, how many, what they speak of.
const GROUPS: [(char, u32, &str); 23] = [
    ('A', 12, "Pool and autoscaler behaviour"),
    ('B', 22, "Parameters"),
    ('C', 5, "Trade-offs"),
    ('D', 16, "Dynamic updates"),
    ('E', 7, "Schedules"),
    ('F', 25, "Map and friends"),
    ('G', 13, "Spawn and calls"),
    ('H', 6, "Async API"),
    ('I', 7, "Input concurrency"),
    ('J', 10, "Dynamic batching"),
    ('K', 7, "Cold starts"),
    ('L', 2, "GPU"),
    ('M', 13, "Limits and errors"),
    ('N', 20, "Examples"),
    ('P', 10, "Models: behaviour"),
    ('Q', 4, "Models: enabling"),
    ('R', 14, "Models: schema"),
    ('S', 11, "Models: priority and defaults"),
    ('T', 9, "HPA"),
    ('U', 5, "KEDA"),
    ('V', 10, "Monitoring"),
    ('W', 9, "Guidance"),
    ('X', 3, "Security"),
];

/// Every `.rs` file below a folder, built ones left out.
pub fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && name != ".git" {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Decisions where the seeds disagree: what each is about.
const DECISIONS: [&str; 17] = [
    "default of `max_containers`",
    "`keep_warm`",
    "`container_idle_timeout`",
    "rate limits",
    "scope of the pending limit",
    "`return_exceptions`",
    "class lookup",
    "windows above 20 minutes",
    "empty Prometheus results",
    "namespace overrides",
    "the ConfigMap's name",
    "both metric names",
    "both label sets",
    "Object and External metrics",
    "HPAScaleToZero",
    "the key `default`",
    "the environment has no retention",
];

/// What a comment says behind `SPEC`.
fn comment(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("//")?.split_once("SPEC ").map(|(_, rest)| rest)
}

/// Decisions in a line behind `SPEC`: `D9`, or behind the word any of them, as `D10` alone is a statement of group D.
fn decisions(line: &str) -> Vec<String> {
    let Some(rest) = comment(line) else { return Vec::new() };
    let (before, after) = rest.split_once("decision").unwrap_or((rest, ""));
    let apart = |c: char| !c.is_ascii_alphanumeric();
    let number =
        |word: &&str| word.strip_prefix('D').is_some_and(|n| n.parse::<usize>().is_ok_and(|n| (1..=17).contains(&n)));
    let short = before.split(apart).filter(|word| word.len() == 2);
    short.chain(after.split(apart)).filter(number).map(str::to_owned).collect()
}

/// Ids like `B07` in a line behind `SPEC`.
fn ids(line: &str) -> Vec<String> {
    let Some(rest) = comment(line) else { return Vec::new() };
    let rest = rest.split("decision").next().unwrap_or(rest);
    let words = rest.split(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |word: &&str| {
        let mut letters = word.chars();
        let first = letters.next().is_some_and(|c| GROUPS.iter().any(|(group, _, _)| *group == c));
        first && word.len() == 3 && letters.all(|c| c.is_ascii_digit())
    };
    words.filter(is_id).map(str::to_owned).collect()
}

/// Tests by the id that they name. The line stands in the test, or right above it.
fn proofs(root: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut proofs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources(root)? {
        let text = std::fs::read_to_string(&file)?;
        let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let mut test = None;
        let mut is_test = false;
        for line in text.lines() {
            let trimmed = line.trim_start();
            is_test |= trimmed.starts_with("#[test]") || trimmed.starts_with("#[tokio::test]");
            let name = trimmed.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
            if let Some(name) = name {
                test = is_test.then(|| name.to_owned());
                is_test = false;
            }
            for id in ids(line).into_iter().chain(decisions(line).into_iter().map(|d| format!("decision {d}"))) {
                if let Some(test) = &test {
                    proofs.entry(id).or_default().push(format!("{test} (`{shown}`)"));
                }
            }
        }
    }
    Ok(proofs)
}

/// The page that lists all statements with their tests.
pub fn page(root: &Path) -> Result<String> {
    let proofs = proofs(root)?;
    let mut rows = String::new();
    let mut proven = 0;
    let _ = write!(rows, "\n## Decisions where the documents disagree\n\n| id | about | test |\n| --- | --- | --- |\n");
    for (n, about) in DECISIONS.iter().enumerate() {
        let tests = proofs.get(&format!("decision D{}", n + 1)).map(|tests| tests.join("; "));
        let _ = writeln!(rows, "| D{} | {about} | {} |", n + 1, tests.unwrap_or_else(|| "—".into()));
    }
    for (letter, count, about) in GROUPS {
        let _ = write!(rows, "\n## {letter}. {about}\n\n| id | test |\n| --- | --- |\n");
        for number in 1..=count {
            let id = format!("{letter}{number:02}");
            let tests = proofs.get(&id).map(|tests| tests.join("; "));
            proven += u32::from(tests.is_some());
            let _ = writeln!(rows, "| {id} | {} |", tests.unwrap_or_else(|| "—".into()));
        }
    }
    let total: u32 = GROUPS.iter().map(|(_, count, _)| count).sum();
    Ok(format!(
        "# Statements of the specification, and the tests that pin them\n\n\
         Written by `cargo run -p capstan-tests -- spec-status`; a test fails when it is not what the sources say. \
         All tests listed here pass in CI. {proven} of {total} statements have one.\n{rows}"
    ))
}
