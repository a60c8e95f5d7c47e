//! The plugin `portmap`: leads ports of the node to a pod that other plugins of the list attached.

use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::netlink::{Socket, route_to};
use fabric::netstate::{NetState, Sysctl};
use fabric::packet_filter::iptables::TableName;
use ipnetwork::IpNetwork;

use crate::bridge::default_name;
use crate::command::check::{Difference, previous};
use crate::error::Error;
use crate::filter;
use crate::invocation::Call;
use crate::iptables;
use crate::kernel::{self, KernelError};
use crate::portmap::{self, Backend, PortMap};
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
    if missing.is_empty() || is_led_by_the_go_plugin(call, &ports, &pod, link)? {
        return Ok(());
    }
    Err(Difference::State(missing).into())
}

/// Whether the rules stand in iptables, where the Go plugin puts them if nobody says otherwise: the pod
/// is older than our coming to this node.
fn is_led_by_the_go_plugin(
    call: &Call,
    ports: &PortMap,
    pod: &[IpNetwork],
    link: LinkName,
) -> Result<bool, Error> {
    let attachment = &call.attachment;
    let is_candidate = ports.backend == Backend::default() && iptables::has_ports(attachment);
    if !is_candidate {
        return Ok(false);
    }
    let ports = PortMap { backend: Backend::of_go_plugin(), ..ports.clone() };
    let mut rules = portmap::rules(attachment, &ports, pod, link);
    // It does not keep others from the node's loopback addresses.
    rules.iptables.values_mut().for_each(|tables| tables.retain(|one| one.name == TableName::Nat));
    Ok(filter::missing(&rules)?.is_empty())
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
