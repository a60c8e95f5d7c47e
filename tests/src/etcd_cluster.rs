//! A private etcd of three members, each on a host of its own on the underlay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::daemon::Daemon;
use crate::namespace::Namespace;
use crate::underlay::Underlay;
use crate::{program, wait};

/// The hosts' numbers on the underlay.
const HOSTS: [u8; 3] = [251, 252, 253];

/// Which etcd it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// That of Debian 12.
    V3_4,
    /// That of Debian 13.
    V3_5,
}

impl Release {
    /// The name under which `etcd` or `etcdctl` is found.
    fn program(self, name: &str) -> String {
        match self {
            Self::V3_4 => name.to_owned(),
            Self::V3_5 => format!("trixie/usr/bin/{name}"),
        }
    }

    /// What it says its version is, such as `3.5.16`.
    ///
    /// # Panics
    /// If it is not installed, or says nothing.
    pub fn version(self) -> String {
        let said = program::run(program::installed(&self.program("etcd")).arg("--version"));
        said.split_whitespace().nth(2).expect("etcd Version: 3.5.16").to_owned()
    }
}

/// Three members and their hosts.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    release: Release,
    number: u8,
    host: Namespace,
    server: Option<Daemon>,
}

impl EtcdCluster {
    /// Makes the hosts, starts the members and waits until they answer.
    pub fn running(underlay: &Underlay, release: Release) -> Self {
        let member = |number| {
            let host = underlay.host(&format!("e{number}"), number);
            Member { release, number, host, server: None }
        };
        let mut cluster = Self { members: HOSTS.map(member).into() };
        (0..HOSTS.len()).for_each(|member| cluster.start(member));
        cluster.wait_until_healthy();
        cluster
    }

    /// How many members there are.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Where nodes reach the members.
    pub fn endpoints() -> String {
        HOSTS.map(|number| format!("http://{}:2379", Underlay::address(number))).join(",")
    }

    /// Starts a member, if it does not run.
    pub fn start(&mut self, member: usize) {
        let member = &mut self.members[member];
        if member.server.is_none() {
            let name = format!("etcd-{}", member.number);
            member.server = Some(Daemon::start(&name, &mut member.command()));
        }
    }

    /// Kills a member; what it stored stays.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut server) = self.members[member].server.take() {
            server.kill();
        }
    }

    /// Sends a member a signal, such as `SIGSTOP`.
    pub fn signal(&self, member: usize, signal: Signal) {
        if let Some(server) = &self.members[member].server {
            server.signal(signal);
        }
    }

    /// The host of a member.
    pub fn host(&self, member: usize) -> &Namespace {
        &self.members[member].host
    }

    /// Kills all members, and starts them again with nothing stored.
    pub fn lose_everything(&mut self) {
        self.begin_anew(|_member| {});
    }

    /// Kills all members, and starts them again with what a snapshot holds.
    ///
    /// # Panics
    /// If the file is no snapshot.
    pub fn restore(&mut self, snapshot: &Path) {
        self.begin_anew(|member| {
            let mut etcdctl = member.etcdctl();
            etcdctl.args(["snapshot", "restore"]).arg(snapshot).args(member.identity());
            program::run(etcdctl.arg("--data-dir").arg(member.directory()));
        });
    }

    fn begin_anew(&mut self, furnish: impl Fn(&Member)) {
        (0..self.size()).for_each(|member| self.kill(member));
        for member in &self.members {
            // Not being there is what is wanted.
            let _gone = fs::remove_dir_all(member.directory());
            furnish(member);
        }
        (0..self.size()).for_each(|member| self.start(member));
        self.wait_until_healthy();
    }

    /// Waits until every member that runs answers.
    pub fn wait_until_healthy(&self) {
        for member in self.members.iter().filter(|member| member.server.is_some()) {
            wait::until(&format!("etcd-{} is healthy", member.number), || {
                let health = program::outcome(member.etcdctl().args(["endpoint", "health"]));
                let reason = || String::from_utf8_lossy(&health.stderr).trim().to_owned();
                if health.status.success() { Ok(()) } else { Err(reason()) }
            });
        }
    }

    /// Runs `etcdctl` on one member; returns what it said, if it did not fail.
    pub fn etcdctl(&self, member: usize, arguments: &[&str]) -> Option<String> {
        let output = program::outcome(self.members[member].etcdctl().args(arguments));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Member {
    fn directory(&self) -> PathBuf {
        PathBuf::from(format!("/run/etcd-{}", self.number))
    }

    fn command(&self) -> Command {
        let address = Underlay::address(self.number);
        let clients = format!("http://{address}:2379");
        let mut command = self.host.command(&self.release.program("etcd"));
        command
            .args(self.identity())
            .arg("--data-dir")
            .arg(self.directory())
            .args(["--listen-client-urls", &format!("{clients},http://127.0.0.1:2379")])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &format!("http://{address}:2380")])
            .args(["--logger", "zap", "--log-level", "error"]);
        command
    }

    /// The flags that say who it is, and who the others are.
    fn identity(&self) -> Vec<String> {
        let name = |number: u8| format!("e{number}");
        let peer = |number| format!("http://{}:2380", Underlay::address(number));
        let peers = HOSTS.map(|number| format!("{}={}", name(number), peer(number))).join(",");
        vec![
            format!("--name={}", name(self.number)),
            format!("--initial-advertise-peer-urls={}", peer(self.number)),
            format!("--initial-cluster={peers}"),
        ]
    }

    fn etcdctl(&self) -> Command {
        let mut command = self.host.command(&self.release.program("etcdctl"));
        command
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", "http://127.0.0.1:2379")
            .args(["--command-timeout", "3s"]);
        command
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            drop(member.server.take());
            // The sandbox goes away with everything in it.
            let _gone = fs::remove_dir_all(member.directory());
        }
    }
}
