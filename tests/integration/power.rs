//! Power cuts under the real binary: what was not synced is lost by chance. An ordinary run cuts five times;
//! `CAPSTAN_FUSE_CUTS=N` cuts N times.

mod disk;

use capstan_tests::{
    raw::Raw,
    real::{Up, echo},
};
use disk::Disk;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

/// Brings work until it is told to stop, or refused. Answers what was accepted, by call: its inputs.
fn work(url: &str, numbers: &AtomicU64, enough: &AtomicBool) -> BTreeMap<String, Vec<u64>> {
    let (mut raw, mut accepted) = (Raw::to(url), BTreeMap::new());
    while !enough.load(Ordering::Relaxed) {
        let first = numbers.fetch_add(40, Ordering::Relaxed);
        let inputs: Vec<u64> = if first.is_multiple_of(3) { (first..first + 40).collect() } else { vec![first] };
        let path = if inputs.len() > 1 { "spawn_map" } else { "spawn" };
        let body: String = inputs.iter().map(|n| format!("{n}\n")).collect();
        let path = format!("/v1/namespaces/default/functions/f/{path}");
        // What was not acknowledged may have happened or not.
        let Ok(answer) = raw.send("POST", &path, &[], body.as_bytes()) else { return accepted };
        assert_eq!(answer.status, 202, "{answer:?}");
        let call: Value = serde_json::from_str(&answer.body).expect("a call");
        accepted.insert(call["call_id"].as_str().expect("an id").to_owned(), inputs);
    }
    accepted
}

async fn all_ended_once(up: &Up, accepted: &BTreeMap<String, Vec<u64>>) {
    for (call, inputs) in accepted {
        let results = up.results(call).await.unwrap();
        let outputs: BTreeMap<u64, &Value> =
            results.iter().map(|result| (result["index"].as_u64().unwrap(), &result["output"])).collect();
        assert_eq!((results.len(), outputs.len()), (inputs.len(), inputs.len()), "{call}: {results:?}");
        for (index, input) in inputs.iter().enumerate() {
            assert_eq!(*outputs[&(index as u64)], json!(input), "{call}");
        }
    }
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    // RELIABILITY F21 I1 I3
    let cuts =
        std::env::var("CAPSTAN_FUSE_CUTS").map_or(5, |cuts| cuts.parse().expect("CAPSTAN_FUSE_CUTS is a number"));
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("disk");
    std::fs::create_dir(&at).unwrap();
    let disk = match Disk::mount(&at) {
        Ok(disk) => disk,
        Err(error) => return eprintln!("a disk of our own cannot be mounted here ({error}): not tried"),
    };
    let data = at.join("data");
    let (mut rng, numbers) = (StdRng::seed_from_u64(21), AtomicU64::new(0));
    let mut accepted: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut up = Up::start_logging(&data, &[], folder_log(folder.path(), 0)).unwrap();
    let more = json!({"concurrency": {"max_inputs": 4}, "autoscaler": {"min_containers": 1}});
    up.deploy("f", echo("", more).unwrap()).await.unwrap();
    for cut in 1..=cuts {
        let (enough, url, pause) = (AtomicBool::new(false), up.url.clone(), rng.random_range(20..400));
        let new = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..2).map(|_| scope.spawn(|| work(&url, &numbers, &enough))).collect();
            std::thread::sleep(Duration::from_millis(pause));
            up.kill().unwrap();
            enough.store(true, Ordering::Relaxed);
            workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect::<Vec<_>>()
        });
        disk.cut(&mut rng);
        up = Up::start_logging(&data, &[], folder_log(folder.path(), cut))
            .unwrap_or_else(|error| panic!("after cut {cut}: {error:#}\n{}", log_of(folder.path(), cut)));
        let new: BTreeMap<_, _> = new.into_iter().collect();
        all_ended_once(&up, &new).await;
        accepted.extend(new);
    }
    // What had ended before later cuts has ended the same way.
    all_ended_once(&up, &accepted).await;
    assert!(accepted.len() > cuts as usize, "hardly anything was accepted: {}", accepted.len());
    eprintln!("{cuts} cuts, {} calls", accepted.len());
}

fn folder_log(folder: &std::path::Path, cut: u32) -> std::process::Stdio {
    std::fs::File::create(folder.join(format!("{cut}.log"))).unwrap().into()
}

fn log_of(folder: &std::path::Path, cut: u32) -> String {
    std::fs::read_to_string(folder.join(format!("{cut}.log"))).unwrap_or_default()
}
