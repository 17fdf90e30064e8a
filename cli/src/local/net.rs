//! Network namespaces for the nodes of a local cluster, on a bridge of their own: each node has its own address, and can be
//! unplugged from everything. Made by `ip`, for root; removed with the value, or by the next cluster if this process is killed.

use anyhow::{Context, Result, ensure};
use std::{net::Ipv4Addr, path::Path, process::Command};

/// Where the kernel shows network devices.
const DEVICES: &str = "/sys/class/net";
/// Where `ip` keeps named namespaces.
const NAMESPACES: &str = "/run/netns";
/// What bridges of ours are called, before the number of their network.
const BRIDGE: &str = "capbr";
/// What namespaces of ours are called, before the number of the process that made them.
const NAMESPACE: &str = "capstan";
/// Addresses of nodes begin behind this one; the bridge has the first.
const FIRST: u8 = 10;

/// A bridge and a namespace for each node. All are gone with this value.
pub struct Net {
    network: u8,
    nodes: usize,
}

fn ip(arguments: &[&str]) -> Result<()> {
    let ran = Command::new("ip").args(arguments).output().context("the package iproute2")?;
    let told = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
    ensure!(ran.status.success(), "ip {}: {told}", arguments.join(" "));
    Ok(())
}

/// Whether this process may make namespaces, and why not: it tries.
pub fn is_allowed() -> Result<()> {
    let net = Net::make(1)?;
    let (program, arguments) = net.inside(0, Path::new("true"));
    let ran = Command::new(program).args(arguments).output().context("the package util-linux")?;
    ensure!(ran.status.success(), "nsenter: {}", String::from_utf8_lossy(&ran.stderr).trim());
    Ok(())
}

/// Removes what processes left that were killed.
fn clean_stale() {
    let lives = |pid: &str| Path::new("/proc").join(pid).exists();
    let listed = Command::new("ip").args(["netns", "list"]).output().map(|ran| ran.stdout).unwrap_or_default();
    for name in String::from_utf8_lossy(&listed).lines().filter_map(|line| line.split(' ').next()) {
        let pid = name.strip_prefix(NAMESPACE).and_then(|rest| rest.split('-').nth(1));
        if pid.is_some_and(|pid| !lives(pid)) {
            // Another cluster that starts may have been faster.
            let _ = ip(&["netns", "del", name]);
        }
    }
    for device in std::fs::read_dir(DEVICES).into_iter().flatten().flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        let owner = std::fs::read_to_string(device.path().join("ifalias")).unwrap_or_default();
        if name.starts_with(BRIDGE) && !owner.trim().is_empty() && !lives(owner.trim()) {
            let _ = ip(&["link", "del", &name]);
        }
    }
}

impl Net {
    /// A network for so many nodes.
    pub fn make(nodes: usize) -> Result<Self> {
        clean_stale();
        ensure!(nodes < 200, "a local network has room for 199 nodes, not {nodes}");
        // The bridge's name is its network's number: of two that try the same one makes it.
        let taken = |network: &u8| ip(&["link", "add", &format!("{BRIDGE}{network}"), "type", "bridge"]);
        let mut last = None;
        let network = (1..=250u8).find(|network| taken(network).map_err(|error| last = Some(error)).is_ok());
        let network = network.with_context(|| last.map_or_else(String::new, |error| error.to_string()))?;
        let net = Self { network, nodes };
        let bridge = net.bridge();
        ip(&["link", "set", &bridge, "alias", &std::process::id().to_string()])?;
        ip(&["addr", "add", &format!("{}/24", net.outside()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for n in 0..nodes {
            let (namespace, cable) = (net.namespace(n), net.cable(n));
            // One that is being removed may still be there: the kernel takes its time.
            let _ = ip(&["link", "del", &cable]);
            ip(&["netns", "add", &namespace])?;
            ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
            ip(&["link", "set", &cable, "master", &bridge])?;
            ip(&["link", "set", &cable, "up"])?;
            ip(&["-n", &namespace, "addr", "add", &format!("{}/24", net.address(n)), "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        }
        Ok(net)
    }

    fn bridge(&self) -> String {
        format!("{BRIDGE}{}", self.network)
    }

    fn namespace(&self, n: usize) -> String {
        format!("{NAMESPACE}{}-{}-{n}", self.network, std::process::id())
    }

    /// The outer end of a node's cable.
    fn cable(&self, n: usize) -> String {
        format!("cap{}v{n}", self.network)
    }

    /// The address of this machine, as nodes see it.
    pub fn outside(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.network, 1)
    }

    /// A node's address.
    pub fn address(&self, n: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.network, FIRST + n as u8)
    }

    /// How a program is started inside of a node. (`ip netns exec` would hide cgroups from it.)
    pub fn inside(&self, n: usize, program: &Path) -> (&'static str, Vec<String>) {
        let net = format!("--net={NAMESPACES}/{}", self.namespace(n));
        ("nsenter", vec![net, program.display().to_string()])
    }

    /// Pulls a node's cable, or plugs it in again.
    pub fn plug(&self, n: usize, plugged: bool) -> Result<()> {
        ip(&["link", "set", &self.cable(n), if plugged { "up" } else { "down" }])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next cluster.
        for n in 0..self.nodes {
            let _ = ip(&["link", "del", &self.cable(n)]);
            let _ = ip(&["netns", "del", &self.namespace(n)]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
    }
}
