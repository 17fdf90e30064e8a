//! Real etcd servers on free ports, of one member or several, which can be killed, paused and started again.

use anyhow::{Context, Result, ensure};
use capstan::local::{etcd_arguments, free_ports};
use capstan_scheduler::store::etcd::EtcdConfig;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Whoever looks after a secured etcd, and the password.
const ROOT: &str = "root:of-all";

/// Certificates for an etcd that speaks to those of its own authority alone.
struct Certificates {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificates {
    /// An authority, and one certificate of it for servers and clients alike.
    fn make(folder: &Path) -> Result<Self> {
        let (ca_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".into()])?;
        // etcd takes a certificate's common name for a user where no other is named.
        params.distinguished_name = Default::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&key, &Issuer::from_ca_cert_pem(&ca_pem, ca_key)?)?;
        let file = |name: &str, text: String| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Self {
            ca: file("ca.pem", ca_pem)?,
            certificate: file("own.pem", signed.pem())?,
            key: file("own.key", key.serialize_pem())?,
        })
    }

    fn texts(&self) -> [String; 3] {
        [&self.ca, &self.certificate, &self.key].map(|path| path.display().to_string())
    }
}

/// An etcd cluster. Ends with it.
pub struct EtcdServers {
    certificates: Option<Certificates>,
    /// The user and the password, once there are.
    login: Option<(String, String)>,
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
        let more: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
        Self::start_told(folder, &ports, &more, None)
    }

    /// Starts one that speaks TLS, and wants a certificate and a user from its clients.
    pub fn start_secured(user: &str, password: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports: Vec<(u16, u16)> = free_ports(2)?.chunks(2).map(|p| (p[0], p[1])).collect();
        let certificates = Certificates::make(folder.path())?;
        let [ca, certificate, key] = certificates.texts();
        let url = format!("https://127.0.0.1:{}", ports[0].0);
        let more = [
            ("--listen-client-urls", url.clone()),
            ("--advertise-client-urls", url),
            ("--trusted-ca-file", ca),
            ("--cert-file", certificate),
            ("--key-file", key),
        ];
        let mut more: Vec<String> = more.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        more.push("--client-cert-auth".into());
        let mut servers = Self::start_told(folder, &ports, &more, Some(certificates))?;
        // The user may do no more than Capstan needs: read and write what lies under its prefix.
        servers.ctl(&["role", "add", "capstan"])?;
        servers.ctl(&["role", "grant-permission", "capstan", "--prefix=true", "readwrite", "/capstan/"])?;
        servers.ctl(&["user", "add", &format!("{user}:{password}")])?;
        servers.ctl(&["user", "grant-role", user, "capstan"])?;
        servers.ctl(&["user", "add", ROOT])?;
        servers.ctl(&["user", "grant-role", "root", "root"])?;
        servers.ctl(&["auth", "enable"])?;
        servers.login = Some((user.into(), password.into()));
        Ok(servers)
    }

    fn start_told(
        folder: TempDir,
        ports: &[(u16, u16)],
        more: &[String],
        certificates: Option<Certificates>,
    ) -> Result<Self> {
        let here = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ends: Vec<_> = ports.iter().map(|(client, peer)| (here(*client), here(*peer))).collect();
        let told = etcd_arguments(folder.path(), &ends).into_iter();
        let told = told.map(|own| own.into_iter().chain(more.iter().cloned()).collect());
        let members: Vec<(u16, Vec<String>)> = ports.iter().map(|(client, _)| *client).zip(told).collect();
        let children = members.iter().map(|_| None).collect();
        let mut servers = Self { folder, children, members, certificates, login: None };
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
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        let endpoints = self.members.iter().map(|(client, _)| format!("{scheme}://127.0.0.1:{client}")).collect();
        let mut config = EtcdConfig { endpoints, ..EtcdConfig::default() };
        if let Some(certificates) = &self.certificates {
            config.ca_file = certificates.ca.clone();
            config.cert_file = certificates.certificate.clone();
            config.key_file = certificates.key.clone();
        }
        if let Some((user, password)) = &self.login {
            (config.user, config.password) = (user.clone(), password.clone());
        }
        config
    }

    /// Asks etcd's own client.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("etcdctl");
        if let Some(certificates) = &self.certificates {
            let [ca, certificate, key] = certificates.texts();
            command.args(["--cacert", &ca, "--cert", &certificate, "--key", &key]);
        }
        if self.login.is_some() {
            command.args(["--user", ROOT]);
        }
        let answer = command
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
