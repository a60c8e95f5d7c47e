//! CHECK: whether an attachment still is what ADD made.
//!
//! Later plugins of the list and the administrator may have added things or replaced routes; that is
//! no difference. What is missing or was changed is told as the commands that would mend it.

use std::fmt::Write as _;
use std::path::Path;

use fabric::netlink::{Scope, Socket, observe};
use fabric::netns::Netns;
use fabric::netstate::NetState;
use fabric::plan::{Plan, diff};

use crate::args::Args;
use crate::attachment::{self, Desired, Made};
use crate::bridge::{Bridge, lookup};
use crate::command::{bandwidth, firewall, flannel, loopback, macvlan, ports, ptp, tuning};
use crate::error::Error;
use crate::filter;
use crate::invocation::Call;
use crate::ipam::source::{Source, SourceDifference};
use crate::kernel::KernelError;
use crate::plugin::Plugin;
use crate::result::AddResult;
use crate::sandbox;
use crate::sharing::among_others;

/// What a CHECK found.
#[derive(Debug, thiserror::Error)]
pub enum Difference {
    /// The runtime does not say what the ADD had said.
    #[error("Required prevResult missing")]
    NoPrevResult,
    /// The result of the ADD has no such interface in that sandbox.
    #[error("Sandbox in prevResult {found:?} doesn't match configured netns: {wanted:?}")]
    OtherSandbox {
        /// The sandbox of the interface there; empty without one.
        found: String,
        /// The sandbox of the attachment.
        wanted: String,
    },
    /// The addresses are not those of the attachment.
    #[error(transparent)]
    Addresses(SourceDifference),
    /// The loopback interface is of no use.
    #[error("loopback interface is down")]
    LoopbackDown,
    /// The kernel is in another state. The commands that would mend it are in the details.
    #[error("the attachment is not as it was made")]
    State(String),
}

/// Compares the attachment with what ADD made.
///
/// # Errors
/// If there is a difference, or if it cannot be found out.
pub fn run(plugin: Plugin, call: &Call, netns: &Path) -> Result<(), Error> {
    match plugin {
        Plugin::Flannel => flannel::check(call, netns),
        Plugin::Bridge => {
            let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
            check(call, netns, &sandbox, &Bridge::new(&call.config, &call.args)?)
        }
        Plugin::HostLocal | Plugin::Static => addresses(plugin, call, netns),
        Plugin::Loopback => loopback::check(call, netns),
        Plugin::Portmap => ports::check(call),
        Plugin::Bandwidth => bandwidth::check(call, netns),
        Plugin::Firewall => firewall::check(call),
        Plugin::Tuning => tuning::check(call, netns),
        Plugin::Ptp => ptp::check(call, netns),
        Plugin::Macvlan => macvlan::check(call, netns),
    }
}

fn check(call: &Call, netns: &Path, sandbox: &Netns, bridge: &Bridge) -> Result<(), Error> {
    let attachment = &call.attachment;
    let previous = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let made = Made::find(attachment, netns, bridge, &previous).map_err(|found| {
        Difference::OtherSandbox { found, wanted: netns.to_string_lossy().into_owned() }
    })?;
    if let Some(ipam) = &bridge.ipam {
        ipam.check(call, netns, Some(&attachment::addresses(&made.ips)))?;
    }
    let desired = attachment::made(attachment, netns, bridge, &made, &previous.routes);
    compare(netns, sandbox, &desired)
}

/// Finds out whether everything is there that is desired on the host and in the sandbox at `netns`.
///
/// # Errors
/// What would make it so, if anything is missing.
pub(super) fn compare(netns: &Path, sandbox: &Netns, desired: &Desired) -> Result<(), Error> {
    let mut differences = difference(&desired.host)?.to_string();
    let inside = sandbox::inside(sandbox, || difference(&desired.sandbox))??;
    if !inside.is_empty() {
        let _ = write!(differences, "in {}:\n{inside}", netns.display());
    }
    differences.push_str(&filter::missing(&desired.filter)?);
    if differences.is_empty() { Ok(()) } else { Err(Difference::State(differences).into()) }
}

/// Whoever calls it alone does not say which address it gave.
fn addresses(plugin: Plugin, call: &Call, netns: &Path) -> Result<(), Error> {
    let source = Source::of_plugin(plugin, &call.config, &Args::parse(&call.args)?)?;
    let previous = previous(call)?.map(|previous| attachment::addresses(&previous.ips));
    source.map_or(Ok(()), |source| source.check(call, netns, previous.as_deref()))
}

/// Returns the result of the plugins before this one, or of all of them if the ADD is over.
///
/// # Errors
/// If it is not the result of an ADD.
pub fn previous(call: &Call) -> Result<Option<AddResult>, Error> {
    let previous = lookup(&call.config, &["prevResult"]).filter(|value| !value.is_null());
    let decoded = previous.map(|result| AddResult::decode(call.version, result.clone()));
    Ok(decoded.transpose()?)
}

/// Returns what would make `desired` true in the namespace of this thread.
fn difference(desired: &NetState) -> Result<Plan, KernelError> {
    let observed = observe(&mut Socket::open()?, &Scope::of(desired))?;
    Ok(diff(&among_others(desired, &observed), &observed))
}
