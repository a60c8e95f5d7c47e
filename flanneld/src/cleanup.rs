//! `flanneld cleanup`: removes from this node what flanneld made there, and flannel before it.
//!
//! Nothing is desired any more, so that the difference to what is observed is everything that
//! carries our mark; it is carried out, or only printed. Pods, their bridge and their rules are the
//! plugin's (`flannel uninstall`), and the lease is the cluster's (`flanneld lease release`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fabric::link_name::LinkName;
use fabric::netlink::{Inventory, NetlinkError, Routes, Scope, Socket, apply, observe};
use fabric::netstate::NetState;
use fabric::plan::diff;
use fabric::subnet_file::SubnetFile;

use crate::backend;
use crate::errors::chain;
use crate::pods;
use crate::rules::engine;
use crate::store::kube::memory_file;

/// What to clean up, and how.
#[derive(Debug)]
pub(crate) struct Cleanup {
    /// Only say what would be done.
    pub(crate) dry_run: bool,
    /// Although pods are attached.
    pub(crate) force: bool,
    pub(crate) subnet_file: PathBuf,
}

/// Why nothing is removed, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CleanupError {
    #[error("flanneld runs here (process {0}) and would make all of it again; stop it first")]
    Running(u32),
    #[error(
        "{} pods of this node would lose their network, such as {}; drain it first, or give --force",
        .0.len(), .0.first().map_or("", String::as_str)
    )]
    Pods(Vec<String>),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("something is left:\n{}", .0.join("\n"))]
    Left(Vec<String>),
}

/// What was done, as commands, and what could not be done.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) commands: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl Cleanup {
    /// Does it, and returns the commands that would do the same.
    pub(crate) fn run(&self) -> Result<String, CleanupError> {
        if !self.dry_run {
            self.refuse()?;
        }
        let mut outcome = Outcome::default();
        self.remove_state(&mut outcome)?;
        engine::remove_everywhere(self.dry_run, &mut outcome);
        for path in [self.subnet_file.clone(), memory_file(&self.subnet_file)] {
            self.remove_file(&path, &mut outcome);
        }
        if !outcome.failures.is_empty() {
            return Err(CleanupError::Left(outcome.failures));
        }
        Ok(outcome.commands.iter().map(|command| format!("{command}\n")).collect())
    }

    fn refuse(&self) -> Result<(), CleanupError> {
        if let Some(process) = another_flanneld() {
            return Err(CleanupError::Running(process));
        }
        let pods = self.pods();
        if pods.is_empty() || self.force { Ok(()) } else { Err(CleanupError::Pods(pods)) }
    }

    fn pods(&self) -> Vec<String> {
        let Ok(file) = SubnetFile::read(&self.subnet_file) else { return Vec::new() };
        file.subnets().flat_map(|subnet| pods::on(subnet, Path::new(pods::NETWORKS))).collect()
    }

    fn remove_state(&self, outcome: &mut Outcome) -> Result<(), CleanupError> {
        let mut socket = Socket::open().map_err(NetlinkError::from)?;
        let plan = diff(&NetState::default(), &ours(&mut socket)?);
        outcome.commands.extend(plan.ops.iter().map(ToString::to_string));
        if !self.dry_run {
            outcome.failures.extend(apply(&mut socket, &plan).iter().map(|error| chain(error)));
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path, outcome: &mut Outcome) {
        if !path.exists() {
            return;
        }
        outcome.commands.push(format!("rm {}", path.display()));
        if !self.dry_run
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            outcome.failures.push(format!("cannot remove {}: {error}", path.display()));
        }
    }
}

/// What of this node's state is ours: the devices by name and kind, with all that is on them, and
/// the routes by their mark. The plugin has the same mark; its routes lead to a pod, ours to a node.
fn ours(socket: &mut Socket) -> Result<NetState, NetlinkError> {
    let named = |name: &LinkName| backend::is_device(name.as_str());
    let interfaces = Inventory::take(socket)?.interfaces.into_iter().map(|one| one.name);
    let links: BTreeSet<_> = interfaces.filter(named).collect();
    let mut scope = Scope { links, ..Scope::default() };
    let found = observe(socket, &scope)?.links;
    scope.links.retain(|name| {
        let kind = found.get(name).map(|link| link.kind.as_str());
        kind == Some(backend::device_kind(name.as_str()))
    });
    scope.routes = Routes::OnLinksAndMarked;
    let mut state = observe(socket, &scope)?;
    state.routes.retain(|_, route| route.via.is_some() || scope.links.contains(&route.link));
    Ok(state)
}

/// Returns another process of this program in this network namespace.
fn another_flanneld() -> Option<u32> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = namespace("self")?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut others = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    others.find(|process: &u32| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        *process != std::process::id()
            && name.trim_end() == "flanneld"
            && namespace(&process.to_string()).as_ref() == Some(&own)
    })
}
