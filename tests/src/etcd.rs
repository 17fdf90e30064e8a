//! Real etcd servers on free ports, of one member or several, which can be killed, paused and started again.

use anyhow::{Context, Result, ensure};
use capstan::local::{etcd_arguments, free_ports};
use capstan_scheduler::store::etcd::EtcdConfig;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// An etcd cluster. Ends with it.
pub struct EtcdServers {
    folder: TempDir,
    /// Where clients reach each member, and how it is started.
    members: Vec<(u16, Vec<String>)>,
    children: Vec<Option<Child>>,
}

impl EtcdServers {
    /// Starts so many members with further arguments, and waits until they answer.
    pub fn start(members: usize, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports: Vec<(u16, u16)> = free_ports(2 * members)?.chunks(2).map(|p| (p[0], p[1])).collect();
        let more = arguments.iter().map(|&a| a.to_owned());
        let told =
            etcd_arguments(folder.path(), &ports).into_iter().map(|own| own.into_iter().chain(more.clone()).collect());
        let members: Vec<(u16, Vec<String>)> = ports.iter().map(|(client, _)| *client).zip(told).collect();
        let mut servers = Self { folder, children: members.iter().map(|_| None).collect(), members };
        for n in 0..servers.members.len() {
            servers.run(n)?;
        }
        servers.wait()?;
        Ok(servers)
    }

    /// Starts a member, or starts it again on what it had.
    pub fn run(&mut self, n: usize) -> Result<()> {
        let log = self.folder.path().join(format!("m{n}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("etcd");
        command.args(&self.members[n].1).stdout(Stdio::null()).stderr(Stdio::from(log));
        self.children[n] = Some(command.spawn().context("the package etcd-server; test.sh installs it")?);
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
        let endpoints = self.members.iter().map(|(client, _)| format!("http://127.0.0.1:{client}")).collect();
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
        if let Some(mut child) = self.children[n].take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Stops a member's clock, or lets it go on.
    pub fn pause(&self, n: usize, paused: bool) -> Result<()> {
        let child = self.children[n].as_ref().context("the member does not run")?;
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
