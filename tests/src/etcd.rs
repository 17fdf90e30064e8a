//! Real etcd servers on free ports, of one member or several, which can be killed, paused and started again.

use anyhow::{Context, Result, ensure};
use capstan_scheduler::store::etcd::EtcdConfig;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// An etcd cluster. Ends with it.
pub struct EtcdServers {
    folder: TempDir,
    members: Vec<Member>,
    arguments: Vec<String>,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl EtcdServers {
    /// Starts so many members with further arguments, and waits until they answer.
    pub fn start(members: usize, arguments: &[&str]) -> Result<Self> {
        // Free while nobody takes them: the next moment they are etcd's own.
        let held = (0..2 * members).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let ports = held.iter().map(|l| Ok(l.local_addr()?.port())).collect::<Result<Vec<u16>>>()?;
        drop(held);
        let members = ports.chunks(2).map(|p| Member { client: p[0], peer: p[1], child: None }).collect();
        let arguments = arguments.iter().map(|&a| a.to_owned()).collect();
        let mut servers = Self { folder: tempfile::tempdir()?, members, arguments };
        for n in 0..servers.members.len() {
            servers.run(n)?;
        }
        servers.wait()?;
        Ok(servers)
    }

    /// Starts a member, or starts it again on what it had.
    pub fn run(&mut self, n: usize) -> Result<()> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<String> = self.members.iter().enumerate().map(|(n, m)| format!("m{n}={}", url(m.peer))).collect();
        let log =
            std::fs::File::options().create(true).append(true).open(self.folder.path().join(format!("m{n}.log")))?;
        let member = &mut self.members[n];
        let child = Command::new("etcd")
            .args(["--name", &format!("m{n}"), "--initial-cluster", &all.join(",")])
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("m{n}")))
            .args(["--listen-client-urls", &url(member.client), "--advertise-client-urls", &url(member.client)])
            .args(["--listen-peer-urls", &url(member.peer), "--initial-advertise-peer-urls", &url(member.peer)])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .context("the package etcd-server; test.sh installs it")?;
        member.child = Some(child);
        Ok(())
    }

    /// Waits until a write is answered.
    pub fn wait(&self) -> Result<()> {
        let begun = Instant::now();
        while self.ctl(&["put", "/waiting", "1"]).is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(30), "etcd did not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.ctl(&["del", "/waiting"]).map(drop)
    }

    /// How it is reached.
    pub fn config(&self) -> EtcdConfig {
        let endpoints = self.members.iter().map(|m| format!("http://127.0.0.1:{}", m.client)).collect();
        EtcdConfig { endpoints, ..EtcdConfig::default() }
    }

    /// Asks etcd's own client.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let answer = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.config().endpoints.join(","), "--command-timeout", "2s"])
            .args(arguments)
            .output()?;
        ensure!(answer.status.success(), "etcdctl: {}", String::from_utf8_lossy(&answer.stderr));
        Ok(String::from_utf8(answer.stdout)?)
    }

    /// Ends a member at once.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        if let Some(mut child) = self.members[n].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Stops a member's clock, or lets it go on.
    pub fn pause(&self, n: usize, paused: bool) -> Result<()> {
        let child = self.members[n].child.as_ref().context("the member does not run")?;
        kill_process(Pid::from_child(child), if paused { Signal::STOP } else { Signal::CONT })?;
        Ok(())
    }

    /// The member that leads.
    pub fn leader(&self) -> Result<usize> {
        let status: serde_json::Value = serde_json::from_str(&self.ctl(&["endpoint", "status", "-w", "json"])?)?;
        let is_leader = |s: &serde_json::Value| s["Status"]["leader"] == s["Status"]["header"]["member_id"];
        let found = status.as_array().and_then(|all| all.iter().position(is_leader));
        found.context("no member leads")
    }
}

impl Drop for EtcdServers {
    fn drop(&mut self) {
        for n in 0..self.members.len() {
            let _ = self.kill(n);
        }
    }
}
