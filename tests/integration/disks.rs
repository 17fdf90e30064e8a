//! Disks that are full (RELIABILITY F23): nothing is lost, nothing hangs, and work goes on once there is room.

use capstan_tests::real::{Up, binary, spec};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A small disk of its own; gone with this.
struct Disk(PathBuf);

impl Disk {
    /// None where it cannot be mounted.
    fn of(folder: &Path, size: &str) -> Option<Self> {
        let disk = Self(folder.join("disk"));
        std::fs::create_dir(&disk.0).unwrap();
        let option = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &option, "none"]).arg(&disk.0).status().unwrap();
        if !mounted.success() {
            eprintln!("a small disk cannot be mounted here (only root can): not tried");
        }
        mounted.success().then_some(disk)
    }

    fn grow(&self, size: &str) {
        let option = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &option]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Maps that are accepted until the disk takes no more.
async fn fill(up: &Up, name: &str) -> Vec<String> {
    let body = format!("\"{}\"\n", "x".repeat(20_000)).repeat(500);
    let mut accepted = Vec::new();
    loop {
        let (status, answer) = up.post(&up.function(name, "/spawn_map"), body.clone()).await.unwrap();
        if status == 507 {
            assert_eq!(answer["code"], "store_full");
            return accepted;
        }
        assert_eq!(status, 202, "{answer}");
        accepted.push(answer["call_id"].as_str().unwrap().to_owned());
        assert!(accepted.len() < 100, "the disk does not fill");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_work_and_loses_nothing() {
    // RELIABILITY F23
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::of(folder.path(), "150m") else { return };
    let data = disk.0.join("data");
    let mut up = Up::start(&data, &[]).unwrap();
    up.deploy("f", spec(&["cat"], "exec", json!({"resources": {"cpu": 1000}}))).await.unwrap();
    let accepted = fill(&up, "f").await;
    assert!(!accepted.is_empty());
    assert_eq!(up.http.get(up.at("/healthz")).send().await.unwrap().status().as_u16(), 200);
    // What is left of the room is for what ends work.
    let (status, view) = up.post(&up.at(&format!("/v1/calls/{}/cancel", accepted[0])), "").await.unwrap();
    assert_eq!(status, 200, "{view}");
    up.kill().unwrap();
    disk.grow("600m");
    let up = Up::start(&data, &[]).unwrap();
    assert_eq!(up.get(&format!("/v1/calls/{}", accepted[0])).await.unwrap()["inputs"]["cancelled"], 500);
    for id in &accepted[1..] {
        assert_eq!(up.get(&format!("/v1/calls/{id}")).await.unwrap()["inputs"]["pending"], 500);
    }
    let (status, answer) = up.post(&up.function("f", "/spawn_map"), "1\n").await.unwrap();
    assert_eq!(status, 202, "{answer}");
}

#[tokio::test]
async fn outcomes_that_fill_the_disk_pause_the_work_and_end_once_when_there_is_room() {
    // RELIABILITY F23 I1 I3
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::of(folder.path(), "150m") else { return };
    let up = Up::start(&disk.0.join("data"), &[]).unwrap();
    let program = binary("odd-server").unwrap().display().to_string();
    let more = json!({"concurrency": {"max_inputs": 8}, "autoscaler": {"max_containers": 2}});
    up.deploy("verbose", spec(&[&program, "verbose"], "http", more)).await.unwrap();
    up.deploy("parked", spec(&["cat"], "exec", json!({"resources": {"cpu": 1000}}))).await.unwrap();
    let parked = up.post(&up.function("parked", "/spawn_map"), "1\n2\n").await.unwrap().1["call_id"].clone();
    let parked = parked.as_str().unwrap();
    let count = 10_000;
    let (status, call) = up.post(&up.function("verbose", "/spawn_map"), "1\n".repeat(count)).await.unwrap();
    assert_eq!(status, 202, "{call}");
    let call = call["call_id"].as_str().unwrap().to_owned();
    // The last input waits for the disk, and says so.
    let last = format!("/v1/calls/{call}/inputs/{}/explain", count - 1);
    let full = |told: &Value| {
        let waiting = &told["waiting"];
        waiting["code"] == "store"
            && waiting["detail"].as_str().is_some_and(|detail| detail.contains("free some space"))
    };
    up.until_at(&last, Duration::from_secs(60), full).await.unwrap();
    // A cancel is answered all the same, by a yes that is durable or by a no.
    let cancel = up.post(&up.at(&format!("/v1/calls/{parked}/cancel")), "").await.unwrap();
    assert!(matches!(cancel.0, 200 | 507), "{cancel:?}");
    assert_eq!(up.http.get(up.at("/healthz")).send().await.unwrap().status().as_u16(), 200);
    disk.grow("600m");
    let results = up.results(&call).await.unwrap();
    let indexes: std::collections::BTreeSet<u64> = results.iter().map(|r| r["index"].as_u64().unwrap()).collect();
    assert_eq!((results.len(), indexes.len()), (count, count));
    assert!(results.iter().all(|result| result["output"].as_str().is_some_and(|text| text.len() == 20_000)));
    let view = up.get(&format!("/v1/calls/{parked}")).await.unwrap();
    let cancelled = view["inputs"]["cancelled"] == 2;
    assert_eq!(cancelled, cancel.0 == 200, "{view}");
}
