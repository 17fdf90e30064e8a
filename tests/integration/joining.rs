//! Workers join by tokens, show certificates, and are who those say.

use capstan::local::{Process, Size};
use capstan_tests::{
    cluster::{Cluster, eventually},
    real::{binary, spec},
};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

/// A cluster with encrypted links, and further workers of it.
struct Bench(Cluster);

impl Bench {
    async fn start(certificate_s: u32) -> Self {
        let set = vec![
            format!("scheduler.worker_certificate_s={certificate_s}"),
            "scheduler.unreachable_after_ms=1500".into(),
            "scheduler.lost_after_ms=3000".into(),
        ];
        let size = Size { etcd: 1, schedulers: 2, workers: 1, tls: true, set, ..Size::default() };
        Self(Cluster::start(size).await.unwrap())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.folder.path().join(name)
    }

    /// Another worker, with a folder and a name of its own.
    fn worker(&self, folder: &str, name: &str, more: &[&str]) -> Process {
        let link = self.0.local.schedulers[0].from_workers.address();
        let mut arguments = vec![
            "--data-dir".into(),
            self.folder(folder).display().to_string(),
            format!("--set=worker.name={name}"),
            format!("--set=worker.schedulers={link}"),
            format!("--set=worker.blob_dir={}", self.folder("blobs").display()),
        ];
        arguments.extend(more.iter().map(|pair| format!("--set={pair}")));
        let program = binary("capstan-worker").unwrap();
        Process::start(&format!("log-{folder}-{name}"), program, arguments, self.0.folder.path()).unwrap()
    }

    /// Waits until a worker says so.
    async fn says(&self, worker: &Process, what: &str) {
        eventually(&format!("`{what}` of {}", worker.name()), async || {
            std::fs::read_to_string(worker.log()).unwrap_or_default().contains(what).then_some(())
        })
        .await;
    }

    /// Waits until a worker is as asked at every scheduler.
    async fn until(&self, name: &str, asked: impl Fn(Option<&str>) -> bool) {
        for scheduler in 0..self.0.local.schedulers.len() {
            eventually(&format!("the asked state of {name}"), async || {
                let view = self.0.get(scheduler, "/v1/workers").await;
                let found = view["workers"].as_array()?.iter().find(|w| w["name"] == name);
                asked(found.and_then(|w| w["state"].as_str())).then_some(())
            })
            .await;
        }
    }

    async fn works(&self) {
        let echo = spec(&["cat"], "exec", json!({"resources": {"cpu": 0.25}}));
        self.0.deploy("echo", &echo).await.unwrap();
        assert_eq!(self.0.invoke(1, "echo", "1").await, (200, json!(1)));
    }
}

#[tokio::test]
async fn a_join_token_lets_one_worker_in_and_only_as_itself() {
    // RELIABILITY §4.1 A3 A4, §4.2 node identity
    let bench = Bench::start(3600).await;
    bench.works().await;
    const TLS: &str = "worker.link_tls=true";
    let token = bench.0.local.invite().await.unwrap();
    let join = format!("worker.join={token}");
    let _second = bench.worker("second", "second", &[TLS, &join]);
    bench.until("second", |state| state == Some("ready")).await;
    // The token is used up; others never were any.
    bench.says(&bench.worker("third", "third", &[TLS, &join]), "the join token is not known").await;
    let (head, authority) = token.rsplit_once('_').unwrap();
    let forged = format!("worker.join={head}x_{authority}");
    bench.says(&bench.worker("fourth", "fourth", &[TLS, &forged]), "the join token is not known").await;
    let fresh = bench.0.local.invite().await.unwrap();
    let elsewhere = format!("worker.join={}_{}", fresh.rsplit_once('_').unwrap().0, "0".repeat(64));
    let foreign = "not of the cluster that the join token is for";
    bench.says(&bench.worker("fifth", "fifth", &[TLS, &elsewhere]), foreign).await;
    bench.says(&bench.worker("sixth", "sixth", &[TLS]), "make a join token with `capstan invite`").await;
    bench.says(&bench.worker("seventh", "seventh", &[TLS, "worker.join=nonsense"]), "is not a join token").await;
    // A worker that shows another's certificate, and one that shows none.
    std::fs::create_dir_all(bench.folder("eighth")).unwrap();
    std::fs::copy(bench.folder("second/identity.json"), bench.folder("eighth/identity.json")).unwrap();
    bench.says(&bench.worker("eighth", "somebody-else", &[TLS]), "not that of a worker named `somebody-else`").await;
    bench.says(&bench.worker("ninth", "plain", &[]), "dialling again").await;
    bench.until("somebody-else", |state| state.is_none()).await;
    bench.until("plain", |state| state.is_none()).await;
    // Its own may read the key, and nobody else.
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(bench.folder("second/identity.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    bench.works().await;
}

#[tokio::test]
async fn a_revoked_worker_is_cut_off_and_not_let_in_again() {
    let bench = Bench::start(3600).await;
    bench.until("worker-1", |state| state == Some("ready")).await;
    let url = bench.0.at(1, "/v1/workers/worker-1/revoke");
    assert_eq!(bench.0.http.post(url).send().await.unwrap().status(), 200);
    bench.says(&bench.0.local.workers[0], "the certificate of worker `worker-1` was revoked").await;
    bench.until("worker-1", |state| state != Some("ready")).await;
    let join = format!("worker.join={}", bench.0.local.invite().await.unwrap());
    let again = bench.worker("again", "worker-1", &["worker.link_tls=true", &join]);
    bench.says(&again, "let it join by another name").await;
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_its_life_and_an_expired_one_is_refused() {
    // RELIABILITY F39
    let mut bench = Bench::start(4).await;
    bench.says(&bench.0.local.workers[0], "the worker's certificate was renewed").await;
    bench.works().await;
    bench.0.local.workers[0].kill().await.unwrap();
    let identity = bench.folder("worker-1/identity.json");
    let until = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["until_ms"].as_u64().unwrap()
    };
    // Certificates count whole seconds.
    let expires = Duration::from_millis(until(&identity)) + Duration::from_millis(2_000);
    eventually("the certificate's end", async || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        (now > expires).then_some(())
    })
    .await;
    bench.0.local.heal().unwrap();
    bench.says(&bench.0.local.workers[0], "the worker's certificate has expired").await;
    // A worker that lies about the time is found out by the scheduler.
    let mut text: Value = serde_json::from_str(&std::fs::read_to_string(&identity).unwrap()).unwrap();
    text["until_ms"] = json!(u64::MAX / 2);
    std::fs::create_dir_all(bench.folder("liar")).unwrap();
    std::fs::write(bench.folder("liar/identity.json"), text.to_string()).unwrap();
    let liar = bench.worker("liar", "worker-1", &["worker.link_tls=true"]);
    bench.says(&liar, "the link to the scheduler broke").await;
    bench.until("worker-1", |state| state != Some("ready")).await;
}

#[tokio::test]
async fn a_name_has_one_worker_until_that_is_lost() {
    // RELIABILITY: two workers with one name; nothing changes, and the remedy is named
    let mut bench = Bench::start(86_400).await;
    bench.works().await;
    let join = |token: &str| format!("worker.join={token}");
    let token = bench.0.local.invite().await.unwrap();
    let second = bench.worker("second", "worker-1", &["worker.link_tls=true", &join(&token)]);
    bench.says(&second, "give each its own worker.name").await;
    assert!(!bench.folder("second").join("worker.pem").exists(), "it was given a certificate");
    bench.works().await;
    // Its machine is gone, and its certificate with it.
    bench.0.local.workers[0].kill().await.unwrap();
    bench.until("worker-1", |state| state.is_none()).await;
    let next = bench.worker("next", "worker-1", &["worker.link_tls=true", &join(&token)]);
    bench.until("worker-1", |state| state == Some("ready")).await;
    bench.works().await;
    drop(next);
}

#[tokio::test]
async fn a_worker_that_does_not_encrypt_its_link_is_told_what_is_missing() {
    let bench = Bench::start(86_400).await;
    let plain = bench.worker("plain", "worker-2", &[]);
    bench.says(&plain, "do the schedulers have link_tls?").await;
}
