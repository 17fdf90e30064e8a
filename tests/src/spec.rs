//! Which test proves which statement of the specification: read from the `// SPEC …` lines of the sources.

use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

/// How a statement may stand.
const KINDS: [&str; 4] = ["proven", "weak", "documentation", "no test"];

/// Groups of statements: letter, what they speak of.
const GROUPS: [(char, &str); 23] = [
    ('A', "Pool and autoscaler behaviour"),
    ('B', "Parameters"),
    ('C', "Trade-offs"),
    ('D', "Dynamic updates"),
    ('E', "Schedules"),
    ('F', "Map and friends"),
    ('G', "Spawn and calls"),
    ('H', "Async API"),
    ('I', "Input concurrency"),
    ('J', "Dynamic batching"),
    ('K', "Cold starts"),
    ('L', "GPU"),
    ('M', "Limits and errors"),
    ('N', "Examples"),
    ('P', "Models: behaviour"),
    ('Q', "Models: enabling"),
    ('R', "Models: schema"),
    ('S', "Models: priority and defaults"),
    ('T', "HPA"),
    ('U', "KEDA"),
    ('V', "Monitoring"),
    ('W', "Guidance"),
    ('X', "Security"),
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

/// What a comment says behind `SPEC`; what stands behind another document's name on the same line is of that one.
fn comment(line: &str) -> Option<&str> {
    let (_, rest) = line.trim_start().strip_prefix("//")?.split_once("SPEC ")?;
    Some(rest.split("RELIABILITY").next().unwrap_or(rest))
}

/// Decisions in a line behind `SPEC`: those behind the word, as `D10` alone is a statement of group D.
fn decisions(line: &str) -> Vec<String> {
    let Some((_, after)) = comment(line).and_then(|rest| rest.split_once("decision")) else { return Vec::new() };
    let of = |word: &&str| {
        word.strip_prefix('D').is_some_and(|n| n.parse::<usize>().is_ok_and(|n| (1..=DECISIONS.len()).contains(&n)))
    };
    after.split(|c: char| !c.is_ascii_alphanumeric()).filter(of).map(str::to_owned).collect()
}

/// Ids like `B07` in a line behind `SPEC`.
fn ids(line: &str) -> Vec<String> {
    let Some(rest) = comment(line) else { return Vec::new() };
    let rest = rest.split("decision").next().unwrap_or(rest);
    let words = rest.split(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |word: &&str| {
        let mut letters = word.chars();
        let first = letters.next().is_some_and(|c| GROUPS.iter().any(|(group, _)| *group == c));
        first && word.len() == 3 && letters.all(|c| c.is_ascii_digit())
    };
    words.filter(is_id).map(str::to_owned).collect()
}

/// Tests by the id that they name. The line stands in the test, or above it behind its attribute.
fn proofs(root: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut proofs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources(root)? {
        let text = std::fs::read_to_string(&file)?;
        let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        for (id, test) in named(&text) {
            proofs.entry(id).or_default().push(format!("{test} (`{shown}`)"));
        }
    }
    Ok(proofs)
}

/// Ids and the tests that name them, of one file.
fn named(text: &str) -> Vec<(String, String)> {
    let (mut found, mut waiting) = (Vec::new(), Vec::new());
    let (mut test, mut is_test, mut end) = (None::<String>, false, String::new());
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("#[test]") || trimmed.starts_with("#[tokio::test") {
            (test, is_test) = (None, true);
        }
        let name = trimmed.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        if line == end {
            test = None;
        }
        if let Some(name) = name {
            end = format!("{}}}", &line[..line.len() - trimmed.len()]);
            test = std::mem::take(&mut is_test).then(|| name.to_owned());
            let above = std::mem::take(&mut waiting);
            found.extend(test.iter().flat_map(|test| above.iter().map(move |id: &String| (id.clone(), test.clone()))));
        }
        for id in ids(line).into_iter().chain(decisions(line).into_iter().map(|d| format!("decision {d}"))) {
            match &test {
                Some(test) => found.push((id, test.clone())),
                None if is_test => waiting.push(id),
                None => {}
            }
        }
    }
    found
}

/// A table of ids and texts.
fn table(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('\t')).collect()
}

/// How a statement stands.
fn standing(id: &str, weak: &BTreeMap<&str, &str>, named: bool) -> String {
    match weak.get(id) {
        _ if !named => "no test".into(),
        Some(&"documentation") => "documentation".into(),
        Some(why) => format!("weak: {why}"),
        None => "proven".into(),
    }
}

/// The page that lists all statements with their tests.
pub fn page(root: &Path) -> Result<String> {
    let proofs = proofs(root)?;
    let (statements, weak) = (table(include_str!("../spec/statements.tsv")), table(include_str!("../spec/weak.tsv")));
    let mut rows = String::new();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let _ = write!(rows, "\n## Decisions where the documents disagree\n\n| id | about | test |\n| --- | --- | --- |\n");
    for (n, about) in DECISIONS.iter().enumerate() {
        let tests = proofs.get(&format!("decision D{}", n + 1)).map(|tests| tests.join("; "));
        let _ = writeln!(rows, "| D{} | {about} | {} |", n + 1, tests.unwrap_or_else(|| "—".into()));
    }
    for (letter, about) in GROUPS {
        let _ = write!(
            rows,
            "\n## {letter}. {about}\n\n| id | statement | standing | tests |\n| --- | --- | --- | --- |\n"
        );
        for (id, text) in statements.iter().filter(|(id, _)| id.starts_with(letter)) {
            let tests = proofs.get(*id).map(|tests| tests.join("; "));
            let standing = standing(id, &weak, tests.is_some());
            *counts
                .entry(KINDS.iter().find(|kind| standing.starts_with(**kind)).copied().unwrap_or(""))
                .or_default() += 1;
            let _ = writeln!(
                rows,
                "| {id} | {} | {standing} | {} |",
                text.replace('|', "\\|"),
                tests.unwrap_or_else(|| "—".into())
            );
        }
    }
    let count = |kind: &str| counts.get(kind).copied().unwrap_or(0);
    Ok(format!(
        "# Statements of the specification, and the tests that pin them\n\n\
         Written by `cargo run -p capstan-tests -- spec-status`; a test fails when it is not what the sources say.\n\n\
         Of {} statements {} are proven: a test that names them fails when they break. {} are weak: what their tests leave open is \
         said. {} are documentation, and {} have no test. Statements of other documents and decisions do not count.\n{rows}",
        statements.len(),
        count("proven"),
        count("weak"),
        count("documentation"),
        count("no test"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_counts_for_its_own_test_and_its_own_document() {
        let text = "#[test]\nfn one() {\n    // SPEC G12, RELIABILITY F20 R2\n    // SPEC P05, decisions D12 D13\n}\n\n\
                    /// Not a test. SPEC A01\nfn helper() {}\n\n#[tokio::test]\n// SPEC B02\nasync fn two() {}\n// SPEC D4\n";
        let found: Vec<(String, String)> = named(text);
        let expected =
            [("G12", "one"), ("P05", "one"), ("decision D12", "one"), ("decision D13", "one"), ("B02", "two")];
        assert_eq!(found, expected.map(|(id, test)| (id.to_owned(), test.to_owned())));
    }

    #[test]
    fn every_statement_has_a_group_and_what_is_weak_exists() {
        let (statements, weak) =
            (table(include_str!("../spec/statements.tsv")), table(include_str!("../spec/weak.tsv")));
        assert_eq!(statements.len(), 240);
        assert!(statements.keys().all(|id| GROUPS.iter().any(|(letter, _)| id.starts_with(*letter))));
        assert!(weak.keys().all(|id| statements.contains_key(id)));
    }
}
