//! CHECK: whether an attachment still is what ADD made.
//!
//! Later plugins of the list and the administrator may have added things or replaced routes; that is
//! no difference. What is missing or was changed is told as the commands that would mend it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use fabric::netlink::{Scope, Socket, observe};
use fabric::netstate::NetState;
use fabric::packet_filter::nft::Nft;
use fabric::packet_filter::{self, PacketFilter, Ruleset};
use fabric::plan::{Plan, diff};
use fabric::subnet_file::SubnetFile;

use crate::attachment::{self, Made};
use crate::bridge::Bridge;
use crate::delegate;
use crate::error::Error;
use crate::invocation::{Attachment, Call};
use crate::ipam::store::{Owner, Store};
use crate::kernel::KernelError;
use crate::result::AddResult;
use crate::sandbox;
use crate::sharing::among_others;
use crate::state::{State, StateFile};

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
    /// An address is not noted as that of the attachment.
    #[error("host-local: Failed to find address added by container {0}")]
    NotReserved(String),
    /// The kernel is in another state. The commands that would mend it are in the details.
    #[error("the attachment is not as it was made")]
    State(String),
}

/// Compares the attachment with what ADD made.
///
/// # Errors
/// If there is a difference, or if it cannot be found out.
pub fn run(call: &Call, netns: &Path) -> Result<(), Error> {
    let Call { attachment, conf, version, .. } = call;
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let bridge = configured(call)?;
    let previous = conf.prev_result.clone().ok_or(Difference::NoPrevResult)?;
    let previous = AddResult::decode(*version, previous)?;
    let made = Made::find(attachment, netns, &bridge, &previous).map_err(|found| {
        Difference::OtherSandbox { found, wanted: netns.to_string_lossy().into_owned() }
    })?;
    check_reserved(&bridge, attachment, made.ips.iter().map(|ip| ip.address.ip()))?;

    let desired = attachment::made(attachment, netns, &bridge, &made, &previous.routes);
    let mut differences = difference(&desired.host)?.to_string();
    let inside = sandbox::inside(&sandbox, || difference(&desired.sandbox))??;
    if !inside.is_empty() {
        let _ = write!(differences, "in {}:\n{inside}", netns.display());
    }
    if let Some(rules) = &desired.filter {
        differences.push_str(&missing_rules(rules)?);
    }
    if differences.is_empty() { Ok(()) } else { Err(Difference::State(differences).into()) }
}

/// What ADD was done with; if that is lost, what it would be done with now.
fn configured(call: &Call) -> Result<Bridge, Error> {
    let Call { attachment, conf, args, .. } = call;
    let delegate =
        match StateFile::of(&conf.data_dir, &attachment.container).read_for(&attachment.network) {
            State::Delegate(delegate) => delegate,
            State::Missing | State::Damaged => {
                let subnet_file = SubnetFile::read(&conf.subnet_file).map_err(Error::SubnetFile)?;
                delegate::configuration(conf, &subnet_file)?
            }
        };
    Ok(Bridge::new(&delegate, args)?)
}

fn check_reserved(
    bridge: &Bridge,
    attachment: &Attachment,
    mut ips: impl Iterator<Item = IpAddr>,
) -> Result<(), Error> {
    let noted = match Store::existing(&bridge.ipam.data_dir, &attachment.network) {
        Some(store) => store.lock()?.addresses_of(&Owner::of(attachment))?,
        None => Default::default(),
    };
    if ips.all(|ip| noted.contains(&ip)) {
        return Ok(());
    }
    Err(Difference::NotReserved(attachment.container.to_string()).into())
}

/// Returns what would make `desired` true in the namespace of this thread.
fn difference(desired: &NetState) -> Result<Plan, KernelError> {
    let observed = observe(&mut Socket::open()?, &Scope::of(desired))?;
    Ok(diff(&among_others(desired, &observed), &observed))
}

fn missing_rules(desired: &Ruleset) -> Result<String, Error> {
    let observed = Nft::open()?.observe(desired)?;
    Ok(packet_filter::diff(desired, &observed).to_string())
}
