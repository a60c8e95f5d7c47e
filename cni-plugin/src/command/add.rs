//! ADD: attaches a container, or leaves nothing behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fabric::link_name::LinkName;
use fabric::netlink::{
    self, AddressMonitor, NetlinkError, Settled, Socket, observe, wait_until_up,
};
use fabric::netns::Netns;
use fabric::netstate::{Link, NetState};
use ipnetwork::IpNetwork;

use crate::args::Args;
use crate::attachment::{self, Desired, host_veth, of_alias};
use crate::bridge::Bridge;
use crate::command::{bandwidth, del, firewall, flannel, loopback, macvlan, ports, ptp, tuning};
use crate::error::Error;
use crate::filter;
use crate::invocation::{Attachment, Call};
use crate::ipam::source::{Given, Source};
use crate::ipam::store::Store;
use crate::kernel::{self, KernelError, links};
use crate::plugin::Plugin;
use crate::result::{AddResult, Interface, Ip, ResultError};
use crate::sandbox;
use crate::sharing::{Conflict, check_host, check_ifb, check_sandbox};
use crate::version::Version;

/// How long the kernel may take to open the attachment's port of the bridge. A few milliseconds are
/// usual.
pub(super) const PORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the bridge itself. Where somebody turned on its spanning tree protocol, that
/// takes half a minute, so it is no error.
const BRIDGE_PATIENCE: Duration = Duration::from_secs(1);

/// How long the kernel may look for duplicates of addresses.
const DUPLICATE_PATIENCE: Duration = Duration::from_secs(10);

/// Attaches the container, or does for it what else the plugin does.
///
/// # Errors
/// If anything fails. Then everything is as it was before, but for what attachments share.
pub fn run(plugin: Plugin, call: &Call, netns: &Path) -> Result<AddResult, Error> {
    match plugin {
        Plugin::Flannel => flannel::add(call, netns),
        Plugin::Bridge => {
            let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
            let bridge = Bridge::new(&call.config, &call.args)?;
            Site::of(call, netns, sandbox)?.check(&bridge)?.attach(bridge, false)
        }
        Plugin::HostLocal | Plugin::Static => addresses(plugin, call, netns),
        Plugin::Loopback => loopback::add(call, netns),
        Plugin::Portmap => ports::add(call),
        Plugin::Bandwidth => bandwidth::add(call, netns),
        Plugin::Firewall => firewall::add(call),
        Plugin::Tuning => tuning::add(call, netns),
        Plugin::Ptp => ptp::add(call, netns),
        Plugin::Macvlan => macvlan::add(call, netns),
    }
}

fn addresses(plugin: Plugin, call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let source = Source::of_plugin(plugin, &call.config, &Args::parse(&call.args)?)?;
    let given = source.map(|source| source.take(call, netns, false)).transpose()?;
    let Given { addresses, routes, dns } = given.unwrap_or_default();
    Ok(AddResult { interfaces: Vec::new(), ips: addresses.commit(), routes, dns })
}

/// Where an attachment is to be made.
pub(super) struct Site<'a> {
    call: &'a Call,
    netns: &'a Path,
    sandbox: Netns,
    /// A socket in the sandbox.
    inside: Socket,
}

impl<'a> Site<'a> {
    pub(super) fn of(call: &'a Call, netns: &'a Path, sandbox: Netns) -> Result<Self, Error> {
        let inside = sandbox::inside(&sandbox, Socket::open)?.map_err(KernelError::from)?;
        Ok(Self { call, netns, sandbox, inside })
    }

    /// Finds out what is in the way before anything is done.
    pub(super) fn check(mut self, bridge: &Bridge) -> Result<Self, Error> {
        if bridge.ipam.is_none() && self.call.version < Version::V0_3_0 {
            return Err(ResultError::NoAddresses.into());
        }
        let if_name = self.call.attachment.if_name;
        check_sandbox(if_name, &observe(&mut self.inside, &links([if_name]))?)?;
        Ok(self)
    }

    /// Takes addresses and connects the sandbox. It cannot have addresses already if it is `fresh`.
    pub(super) fn attach(self, bridge: Bridge, fresh: bool) -> Result<AddResult, Error> {
        let Self { call, netns, sandbox, inside } = self;
        let attachment = &call.attachment;
        let given = bridge.ipam.as_ref().map(|source| source.take(call, netns, fresh));
        let Given { mut addresses, routes, dns } = given.transpose()?.unwrap_or_default();
        attachment::complete_gateways(&bridge, &mut addresses.ips);
        let ips = &addresses.ips;
        let routes = attachment::routes(&bridge, &routes, ips);
        let desired = attachment::desired(attachment, netns, &bridge, ips, &routes);
        let before = attach(attachment, &bridge, &desired, &sandbox, inside)?;
        filter::forget_earlier_flows(&bridge.ports, &attachment::addresses(ips));
        let ips = addresses
            .commit()
            .into_iter()
            .map(|ip| Ip { interface: Some(SANDBOX_INTERFACE), ..ip });
        Ok(AddResult {
            interfaces: interfaces(call, &bridge, netns, &before, &desired),
            ips: ips.collect(),
            routes,
            dns: bridge.dns.unwrap_or(dns),
        })
    }
}

/// Brings the kernel to the desired state or back to where it was. Returns what was on the host
/// before.
fn attach(
    attachment: &Attachment,
    bridge: &Bridge,
    desired: &Desired,
    sandbox: &Netns,
    inside: Socket,
) -> Result<NetState, Error> {
    let mut host = Socket::open().map_err(KernelError::from)?;
    let attached = connect(attachment, bridge, desired, sandbox, inside, &mut host);
    let in_the_way = matches!(attached, Err(Error::Kernel(KernelError::Conflict(_))));
    if attached.is_err() && !in_the_way {
        // What stopped the ADD is what must be told.
        let _also_failed = del::detach(&mut host, attachment, !desired.filter.is_empty());
    }
    attached
}

fn connect(
    attachment: &Attachment,
    bridge: &Bridge,
    desired: &Desired,
    sandbox: &Netns,
    mut inside: Socket,
    host: &mut Socket,
) -> Result<NetState, Error> {
    let veth = host_veth(attachment);
    let check = |observed: &NetState| {
        check_ifb(attachment, observed)?;
        match check_host(veth, &desired.host, observed, bridge.force_address) {
            // What is left of an earlier lease goes with its last pod.
            Err(Conflict::OtherAddress { present, .. })
                if !is_subnet_in_use(attachment, bridge, present) =>
            {
                Ok(())
            }
            checked => checked,
        }
    };
    if bridge.vlans.filtering {
        // Not every kernel has it. Those that have not say so before there is anything to undo.
        let bridge = desired.host.links.get_key_value(&bridge.name);
        let links = bridge.map(|(name, link)| (*name, link.clone())).into_iter().collect();
        kernel::ensure(host, &NetState { links, ..NetState::default() }, check)?;
    }
    let before = kernel::ensure(host, &desired.host, check)?;
    // Whoever had the addresses before may have had another Ethernet address.
    let pod = desired.sandbox.addresses.iter().map(|address| address.ip.ip());
    del::forget_neighbours(host, attachment::gateway_link(bridge), pod.collect());
    let addresses = sandbox::inside(sandbox, || -> Result<_, KernelError> {
        let is_probed = !desired.sandbox.probed.is_empty();
        let addresses = is_probed.then(AddressMonitor::open).transpose()?;
        kernel::ensure(&mut inside, &desired.sandbox, |_| Ok(()))?;
        Ok(addresses)
    })??;
    filter::ensure(&desired.filter)?;
    if !bridge.up {
        return Ok(before);
    }
    // Whatever is sent before would be lost, and ARP tries again only after a second.
    if !wait_until_up(host, veth, PORT_PATIENCE)? {
        return Err(KernelError::PortDown(veth).into());
    }
    // A bridge that had no other port only starts now.
    let _is_up = wait_until_up(host, bridge.name, BRIDGE_PATIENCE)?;
    if let Some(addresses) = addresses {
        wait_until_settled(attachment.if_name, &addresses, &mut inside)?;
    }
    Ok(before)
}

/// Whether a port of the bridge may have an address of this subnet. That cannot be excluded of ports
/// which are not of our network, and not of ours if they do not get their addresses from files.
fn is_subnet_in_use(attachment: &Attachment, bridge: &Bridge, subnet: IpNetwork) -> bool {
    let ports = Socket::open().map_err(NetlinkError::from);
    let Ok(ports) = ports.and_then(|mut socket| netlink::ports(&mut socket, bridge.name)) else {
        return true;
    };
    if ports.is_empty() {
        return false;
    }
    let network = attachment.network.as_str();
    let is_ours = |alias: &Option<String>| {
        alias.as_deref().and_then(of_alias).is_some_and(|(_, _, of)| of == network)
    };
    let Some(Source::HostLocal(ipam)) = &bridge.ipam else { return true };
    let taken = match Store::existing(&ipam.data_dir, &attachment.network) {
        Some(store) => store.taken_unlocked(),
        None => return true,
    };
    !ports.values().all(is_ours)
        || taken.is_ok_and(|taken| taken.iter().any(|ip| subnet.contains(*ip)))
}

fn wait_until_settled(
    link: LinkName,
    addresses: &AddressMonitor,
    inside: &mut Socket,
) -> Result<(), KernelError> {
    match addresses.wait_until_settled(inside, link, DUPLICATE_PATIENCE)? {
        Settled::Usable => Ok(()),
        Settled::Duplicate(ip) => Err(KernelError::Duplicate(link, ip)),
        Settled::Unknown(ip) => Err(KernelError::Tentative(link, ip)),
    }
}

/// Where the interface of the sandbox stands among those of the result.
const SANDBOX_INTERFACE: usize = 2;

fn interfaces(
    call: &Call,
    bridge: &Bridge,
    netns: &Path,
    before: &NetState,
    desired: &Desired,
) -> Vec<Interface> {
    let attachment = &call.attachment;
    let interface = |name, links: &[&BTreeMap<LinkName, Link>]| {
        let mac = links.iter().find_map(|links| links.get(&name)?.mac);
        Interface {
            name: name.to_string(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            ..Interface::default()
        }
    };
    // A bridge that was there has kept its Ethernet address.
    let host = [&before.links, &desired.host.links];
    let sandbox = Interface {
        sandbox: netns.to_string_lossy().into_owned(),
        ..interface(attachment.if_name, &[&desired.sandbox.links])
    };
    let gateway = attachment::gateway_link(bridge);
    let of_vlan = desired.host.links.contains_key(&gateway) && gateway != bridge.name;
    let links = [interface(bridge.name, &host), interface(host_veth(attachment), &host), sandbox];
    let links = links.into_iter().chain(of_vlan.then(|| interface(gateway, &host)));
    links.chain(bandwidth::interface(call, &desired.host)).collect()
}
