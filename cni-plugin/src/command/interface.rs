//! What the plugins have in common that make an interface without a bridge.

use std::path::Path;

use fabric::mac::MacAddr;
use fabric::netlink::{Socket, observe};
use fabric::netns::Netns;

use crate::attachment::{Desired, is_essential};
use crate::command::check::Difference;
use crate::error::Error;
use crate::invocation::Call;
use crate::kernel::{KernelError, links};
use crate::result::{AddResult, Interface, Ip};
use crate::sandbox;
use crate::sharing::check_sandbox;

/// Finds out that the sandbox has no such interface yet.
///
/// # Errors
/// If it has.
pub(super) fn check_free(call: &Call, sandbox: &Netns) -> Result<(), Error> {
    let if_name = call.attachment.if_name;
    let look = || observe(&mut Socket::open()?, &links([if_name]));
    let observed = sandbox::inside(sandbox, look)?.map_err(KernelError::from)?;
    Ok(check_sandbox(if_name, &observed)?)
}

/// Finds the interface in the result of an ADD: its Ethernet address, and its addresses.
///
/// # Errors
/// If it is not there, or in another sandbox.
pub(super) fn made(
    call: &Call,
    netns: &Path,
    result: &AddResult,
) -> Result<(Option<MacAddr>, Vec<Ip>), Error> {
    let if_name = call.attachment.if_name.as_str();
    let wanted = netns.to_string_lossy().into_owned();
    let named = |one: &&Interface| one.name == if_name && !one.sandbox.is_empty();
    let is_it = |one: &Interface| named(&one) && one.sandbox == wanted;
    let Some(index) = result.interfaces.iter().position(is_it) else {
        let elsewhere = result.interfaces.iter().find(named).map(|one| one.sandbox.clone());
        return Err(
            Difference::OtherSandbox { found: elsewhere.unwrap_or_default(), wanted }.into()
        );
    };
    let is_its = |ip: &&Ip| ip.interface.is_none_or(|of| of == index);
    let ips = result.ips.iter().filter(is_its).cloned().collect();
    Ok((result.interfaces[index].mac.parse().ok(), ips))
}

/// Leaves open what later plugins of the list may change, and what nothing depends on.
pub(super) fn relax(call: &Call, desired: &mut Desired, mac: Option<MacAddr>) {
    desired.host.sysctls.retain(|sysctl, _| is_essential(sysctl));
    desired.sandbox.sysctls.retain(|sysctl, _| is_essential(sysctl));
    // The runtime looks after the loopback interface.
    desired.sandbox.links.retain(|name, _| *name == call.attachment.if_name);
    for link in desired.host.links.values_mut() {
        (link.mac, link.mtu) = (None, None);
    }
    for link in desired.sandbox.links.values_mut() {
        (link.mac, link.mtu) = (mac, None);
    }
}
