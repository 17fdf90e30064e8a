//! What functions are kept from: the escape probes, against a real `capstan up` as root and as a plain user.

use capstan_tests::{
    probes::{Answers, Worker, run},
    stays,
};

/// Groups of which a plain user's worker lets nothing through.
const KEPT_BY_PLAIN: [&str; 5] = ["environment", "memory", "mounts", "processes", "signals"];
/// What a plain user's functions reach among files: what their user could read anyway.
const SHARED: [&str; 1] = ["read a private file of the operator"];

fn reached<'a>(answers: &'a Answers, groups: &[&str]) -> Vec<&'a str> {
    let of = answers.iter().filter(|(group, _)| groups.is_empty() || groups.contains(&group.as_str()));
    of.flat_map(|(_, probes)| probes)
        .filter(|(_, answer)| *answer == "reached")
        .map(|(what, _)| what.as_str())
        .collect()
}

#[tokio::test]
async fn no_probe_gets_out_of_a_function_and_each_gets_out_of_a_trusted_one() {
    let kept = run(Worker::Root, false).await.unwrap();
    assert_eq!(reached(&kept, &[]), Vec::<&str>::new());
    let trusted = run(Worker::Root, true).await.unwrap();
    let missed = trusted.values().flatten().filter(|(_, answer)| *answer != "reached");
    assert_eq!(missed.collect::<Vec<_>>(), Vec::new(), "a probe that reaches nothing proves nothing");
    assert!(kept.values().map(|probes| probes.len()).sum::<usize>() >= 60);
    let page = include_str!("../../docs/isolation-probes.md");
    let told = kept.values().flatten().all(|(what, _)| page.contains(&format!("| {what} |")));
    assert!(told, "docs/isolation-probes.md is old: cargo run -p capstan-tests -- probes");
}

#[tokio::test]
async fn a_plain_users_worker_keeps_processes_memory_environments_signals_and_mounts_apart() {
    let plain = run(Worker::Plain, false).await.unwrap();
    assert_eq!(reached(&plain, &KEPT_BY_PLAIN), Vec::<&str>::new());
    assert_eq!(reached(&plain, &["files"]), SHARED);
}

#[tokio::test]
async fn of_programs_that_try_to_stay_nothing_is_left_whoever_is_killed() {
    // RELIABILITY F20 R2
    let count = std::env::var("CAPSTAN_STAYS").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    let left = stays::run(count, 4).await.unwrap();
    assert!(left.ended >= count, "{} ended", left.ended);
}
