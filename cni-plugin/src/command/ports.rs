//! The plugin `portmap`: leads ports of the node to a pod that other plugins of the list attached.

use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::netlink::{Socket, route_to};
use fabric::netstate::{NetState, Sysctl};
use ipnetwork::IpNetwork;

use crate::bridge::default_name;
use crate::command::check::{Difference, previous};
use crate::error::Error;
use crate::filter;
use crate::invocation::Call;
use crate::kernel::{self, KernelError};
use crate::portmap::{self, PortMap};
use crate::result::{AddResult, Ip};

/// Leads the ports, and passes on what the plugins before it made.
///
/// # Errors
/// If there is none before it, or if the kernel refuses. No rules stay then.
pub fn add(call: &Call) -> Result<AddResult, Error> {
    let previous = previous(call)?.ok_or(Error::NotChained)?;
    let ports = PortMap::new(&call.config)?;
    if ports.is_empty() {
        return Ok(previous);
    }
    let pod = networks(call, &previous);
    let mut host = Socket::open().map_err(KernelError::from)?;
    let link = link_to(&mut host, &pod)?;
    if ports.leads_loopback() && pod.iter().any(IpNetwork::is_ipv4) {
        let sysctls = [(Sysctl::ipv4(link, "route_localnet"), "1".to_owned())].into();
        kernel::ensure(&mut host, &NetState { sysctls, ..NetState::default() }, |_| Ok(()))?;
    }
    filter::ensure(&portmap::rules(&call.attachment, &ports, &pod, link))?;
    filter::forget_earlier_flows(&ports, &addresses(&pod));
    Ok(previous)
}

/// Removes the rules of the attachment, whatever the runtime says about its ports.
///
/// # Errors
/// If the kernel refuses.
pub fn del(call: &Call) -> Result<(), Error> {
    let had_rules = filter::remove(&call.attachment)?;
    // Without a result it is not known who answered.
    if let (true, Ok(Some(previous))) = (had_rules, previous(call)) {
        filter::forget_flows_to(&addresses(&networks(call, &previous)).into_iter().collect());
    }
    Ok(())
}

/// Finds out whether the rules are there.
///
/// # Errors
/// If not all of them are.
pub fn check(call: &Call) -> Result<(), Error> {
    let previous = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let ports = PortMap::new(&call.config)?;
    if ports.is_empty() {
        return Ok(());
    }
    let pod = networks(call, &previous);
    let link = link_to(&mut Socket::open().map_err(KernelError::from)?, &pod)?;
    let missing = filter::missing(&portmap::rules(&call.attachment, &ports, &pod, link))?;
    if missing.is_empty() { Ok(()) } else { Err(Difference::State(missing).into()) }
}

/// The addresses of the pod: those of its interface, or of no interface that is known.
fn networks(call: &Call, result: &AddResult) -> Vec<IpNetwork> {
    let if_name = call.attachment.if_name.as_str();
    let is_of_pod = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|one| one.name == if_name && !one.sandbox.is_empty())
    };
    result.ips.iter().filter(is_of_pod).map(|ip| ip.address).collect()
}

fn addresses(networks: &[IpNetwork]) -> Vec<IpAddr> {
    networks.iter().map(IpNetwork::ip).collect()
}

/// The link by which the node reaches the pod.
fn link_to(host: &mut Socket, pod: &[IpNetwork]) -> Result<LinkName, Error> {
    let Some(pod) = pod.first() else { return Ok(default_name()) };
    let route = route_to(host, pod.ip())?;
    Ok(route.map_or_else(default_name, |(link, _)| link))
}
