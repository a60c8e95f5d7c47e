//! The plugin `bandwidth`: limits how much a pod may send and receive that other plugins of the list
//! attached.

use std::path::Path;

use fabric::link_name::LinkName;
use fabric::netlink::{Scope, Socket, link_of_index, observe, peer_of};
use fabric::netstate::{Link, LinkKind, NetState};
use fabric::plan::diff;

use crate::attachment::is_host_link_of;
use crate::bandwidth::{self, Limits};
use crate::command::check::{Difference, previous};
use crate::error::Error;
use crate::invocation::Call;
use crate::kernel::{self, KernelError, links};
use crate::result::{AddResult, Interface};
use crate::sandbox;
use crate::sharing::{among_others, check_ifb};

/// Why it is not known which link of the host is the pod's.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The plugins before this one made nothing.
    #[error("no interfaces provided")]
    NoInterfaces,
    /// The interface of the pod is not one end of a pair.
    #[error("container interface {0} has no veth peer")]
    NoPeer(LinkName),
    /// The other end is elsewhere.
    #[error("veth peer with index {0} is not in host ns")]
    NotOnHost(u32),
    /// The other end is none that the plugins before this one speak of.
    #[error("no veth peer of container interface found in host ns")]
    NotInResult,
}

/// Sets the limits, and passes on what the plugins before it made, with what it made itself.
///
/// # Errors
/// If there is none before it, or if the kernel refuses. No limits stay then.
pub fn add(call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let mut result = previous(call)?.ok_or(Error::NotChained)?;
    let limits = Limits::new(&call.config)?;
    if limits.is_none() {
        return Ok(result);
    }
    let mut host = Socket::open().map_err(KernelError::from)?;
    let veth = host_end(call, netns, &result, &mut host)?;
    let desired = desired(call, veth, &limits, &mut host)?;
    let check = |observed: &NetState| check_ifb(&call.attachment, observed);
    if let Err(error) = kernel::ensure(&mut host, &desired, check) {
        let _what_stopped_it_must_be_told = unlimit(call, veth, &desired, &mut host);
        return Err(error.into());
    }
    result.interfaces.extend(interface(call, &desired));
    Ok(result)
}

/// Removes the link for what comes from the pod. The limits go with the host's end of its pair.
///
/// # Errors
/// If the kernel refuses.
pub fn del(call: &Call) -> Result<(), Error> {
    let mut host = Socket::open().map_err(KernelError::from)?;
    let mut observed = observe(&mut host, &links(bandwidth::ifb_names(&call.attachment)))?;
    observed.links.retain(|name, link| bandwidth::is_ifb_of(&call.attachment, *name, link));
    Ok(kernel::remove(&mut host, &observed)?)
}

/// Finds out whether the limits are those that ADD set.
///
/// # Errors
/// If they are not.
pub fn check(call: &Call, netns: &Path) -> Result<(), Error> {
    let result = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let limits = Limits::new(&call.config)?;
    if limits.is_none() {
        return Ok(());
    }
    let mut host = Socket::open().map_err(KernelError::from)?;
    let veth = host_end(call, netns, &result, &mut host)?;
    let mut desired = desired(call, veth, &limits, &mut host)?;
    if let Some(ifb) = desired.links.get_mut(&bandwidth::ifb(&call.attachment)) {
        // The Go plugin leaves this to the kernel.
        (ifb.mac, ifb.mtu, ifb.alias, ifb.queue_length) = (None, None, None, None);
    }
    let observed = observe(&mut host, &Scope::of(&desired))?;
    let missing = diff(&among_others(&desired, &observed), &observed);
    if missing.is_empty() { Ok(()) } else { Err(Difference::State(missing.to_string()).into()) }
}

/// Finds the host's end of the pod's pair among what the plugins before made.
fn host_end(
    call: &Call,
    netns: &Path,
    result: &AddResult,
    host: &mut Socket,
) -> Result<LinkName, Error> {
    if result.interfaces.is_empty() {
        return Err(PeerError::NoInterfaces.into());
    }
    let if_name = call.attachment.if_name;
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let peer = sandbox::inside(&sandbox, || peer_of(&mut Socket::open()?, if_name))??;
    let index = peer.ok_or(PeerError::NoPeer(if_name))?;
    let veth = link_of_index(host, index)?.ok_or(PeerError::NotOnHost(index))?;
    let is_said = |one: &Interface| one.sandbox.is_empty() && one.name == veth.as_str();
    let said = result.interfaces.iter().any(is_said);
    if said { Ok(veth) } else { Err(PeerError::NotInResult.into()) }
}

fn desired(
    call: &Call,
    veth: LinkName,
    limits: &Limits,
    host: &mut Socket,
) -> Result<NetState, Error> {
    let mtu = observe(host, &links([veth]))?.links.get(&veth).and_then(|link| link.mtu);
    let mut desired = NetState::default();
    desired.links.insert(veth, Link::up(LinkKind::Veth(None)));
    bandwidth::add_to(&mut desired, &call.attachment, veth, mtu, limits);
    Ok(desired)
}

/// Leaves the pair as it was.
fn unlimit(
    call: &Call,
    veth: LinkName,
    desired: &NetState,
    host: &mut Socket,
) -> Result<(), KernelError> {
    let mut observed = observe(host, &Scope::of(desired))?;
    observed
        .links
        .retain(|name, link| *name != veth && is_host_link_of(&call.attachment, *name, link));
    kernel::remove(host, &observed)
}

/// What the result says about the link for what comes from the pod.
pub fn interface(call: &Call, desired: &NetState) -> Option<Interface> {
    let name = bandwidth::ifb(&call.attachment);
    let mac = desired.links.get(&name)?.mac?;
    Some(Interface { name: name.to_string(), mac: mac.to_string(), ..Interface::default() })
}
