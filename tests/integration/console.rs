//! Standard output and standard error as the world has them: closed, full, or read by nobody (fault A and its kind).

use capstan_tests::real::{Up, binary, spec};
use serde_json::json;
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

async fn serves(up: &Up) {
    up.deploy("cat", spec(&["cat"], "exec", json!({}))).await.unwrap();
    for n in 0..50 {
        assert_eq!(up.invoke("cat", json!(n)).await.unwrap(), (200, json!(n)));
        // Refusals are logged, too.
        assert_eq!(up.invoke("nothing", json!(n)).await.unwrap().0, 404);
    }
}

#[tokio::test]
async fn up_serves_on_when_standard_error_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let closed = Up::start_logging(&folder.path().join("closed"), &[], writer.into());
    drop(reader);
    serves(&closed.unwrap()).await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let full = Up::start_logging(&folder.path().join("full"), &[], full.into());
    serves(&full.unwrap()).await;
}

#[test]
fn a_reader_that_has_read_enough_is_no_fault() {
    for words in [&["completions", "bash"][..], &["help"], &["completions", "zsh"]] {
        let mut child = Command::new(binary("capstan").unwrap())
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{words:?}: {said}");
    }
}
