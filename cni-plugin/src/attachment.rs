//! What an attachment is made of, as data: on the host, in the sandbox, in the packet filter. Pure.
//!
//! All that identifies it is derived from the attachment or its address: the name and the remark of
//! the host veth, the Ethernet addresses of the pod and of the bridge. So DEL finds what ADD made
//! without any memory of it, and a pod that gets the address of another one before it also gets its
//! Ethernet address, which is the one that everybody still remembers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use fabric::netstate::{
    Address, BridgePort, Link, LinkKind, NetState, PortVlan, ROUTE_PROTOCOL, Route, RouteKey,
    Sysctl, VethPeer,
};
use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};

use crate::bandwidth;
use crate::bridge::{Bridge, Gateway};
use crate::filter::Rules;
use crate::invocation::Attachment;
use crate::masquerade;
use crate::portmap;
use crate::result::{self, AddResult, Interface, Ip};
use crate::spoofing;

/// The state that an ADD brings about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// On the host: the bridge and the attachment's port of it.
    pub host: NetState,
    /// In the sandbox.
    pub sandbox: NetState,
    /// Rules of the packet filter.
    pub filter: Rules,
}

/// Returns what shall be for an attachment with these addresses and routes, whose sandbox is at
/// `netns`.
pub fn desired(
    attachment: &Attachment,
    netns: &Path,
    bridge: &Bridge,
    ips: &[Ip],
    routes: &[result::Route],
) -> Desired {
    Desired {
        host: host(attachment, netns, bridge, ips),
        sandbox: sandbox(attachment, bridge, ips, routes),
        filter: filter(attachment, bridge, ips),
    }
}

fn filter(attachment: &Attachment, bridge: &Bridge, ips: &[Ip]) -> Rules {
    let addresses: Vec<_> = ips.iter().map(|ip| ip.address).collect();
    let mut rules = match bridge.masquerade {
        Some(engine) => masquerade::rules(attachment, engine, &addresses),
        None => Rules::default(),
    };
    if !bridge.ports.is_empty() {
        rules.extend(portmap::rules(attachment, &bridge.ports, &addresses, gateway_link(bridge)));
    }
    if bridge.mac_spoof_check {
        let mac = pod_mac(attachment, bridge, ips);
        let check = spoofing::rules(attachment, host_veth(attachment), mac);
        rules.extend(Rules::of_nftables(check));
    }
    rules
}

/// The addresses themselves.
pub fn addresses(ips: &[Ip]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.address.ip()).collect()
}

/// What the result of an ADD says about one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The addresses of the interface in the sandbox.
    pub ips: Vec<Ip>,
    mac: Option<MacAddr>,
    /// The host's end, if it is not the one that we make: the Go plugin chose the name at random.
    foreign_veth: Option<LinkName>,
    veth_mac: Option<MacAddr>,
}

impl Made {
    /// Finds the attachment, whose sandbox is at `netns`, in the result of an ADD.
    ///
    /// # Errors
    /// The sandbox that an interface of that name is in, or nothing, if it is not there.
    pub fn find(
        attachment: &Attachment,
        netns: &Path,
        bridge: &Bridge,
        result: &AddResult,
    ) -> Result<Self, String> {
        let netns = netns.to_string_lossy();
        let named =
            |one: &&Interface| one.name == attachment.if_name.as_str() && !one.sandbox.is_empty();
        let elsewhere = || result.interfaces.iter().find(named).map(|one| one.sandbox.clone());
        let (index, interface) = (result.interfaces.iter().enumerate())
            .find(|(_, one)| named(one) && one.sandbox == netns)
            .ok_or_else(|| elsewhere().unwrap_or_default())?;
        let mac = |interface: &Interface| interface.mac.parse().ok();
        let on_host = || result.interfaces.iter().filter(|one| one.sandbox.is_empty());
        let ours = on_host().find(|one| one.name == host_veth(attachment).as_str());
        let foreign = || on_host().find(|one| one.name != bridge.name.as_str());
        let veth = ours.or_else(foreign);
        let is_ours = |ip: &&Ip| ip.interface.is_none_or(|of| of == index);
        Ok(Self {
            ips: result.ips.iter().filter(is_ours).cloned().collect(),
            mac: mac(interface),
            foreign_veth: veth.filter(|_| ours.is_none()).and_then(|one| one.name.parse().ok()),
            veth_mac: veth.and_then(mac),
        })
    }
}

/// Returns what must still be true of an attachment: less than what ADD brought about, since later
/// plugins may change properties of the interfaces, and the routes of the sandbox.
pub fn made(
    attachment: &Attachment,
    netns: &Path,
    bridge: &Bridge,
    made: &Made,
    routes: &[result::Route],
) -> Desired {
    let mut desired = desired(attachment, netns, bridge, &made.ips, routes);
    desired.host.sysctls.retain(|sysctl, _| is_essential(sysctl));
    desired.sandbox.sysctls.retain(|sysctl, _| is_essential(sysctl));
    // The runtime looks after the loopback interface.
    desired.sandbox.links.retain(|name, _| *name == attachment.if_name);
    if let Some(interface) = desired.sandbox.links.get_mut(&attachment.if_name) {
        (interface.mac, interface.mtu) = (made.mac, None);
    }
    if let Some(mut veth) = desired.host.links.remove(&host_veth(attachment)) {
        (veth.mac, veth.mtu) = (made.veth_mac, None);
        if made.foreign_veth.is_some() {
            (veth.alias, desired.filter) = (None, Rules::default());
        }
        let name = made.foreign_veth.unwrap_or(host_veth(attachment));
        desired.host.links.insert(name, veth);
        let vlans = std::mem::take(&mut desired.host.vlans).into_iter();
        let renamed = |link| if link == host_veth(attachment) { name } else { link };
        desired.host.vlans =
            vlans.map(|((link, vid), vlan)| ((renamed(link), vid), vlan)).collect();
    }
    desired
}

/// Whether an attachment is of no use without this parameter being set.
pub fn is_essential(sysctl: &Sysctl) -> bool {
    let name = sysctl.as_path().rsplit('/').next();
    matches!(name, Some("ip_forward" | "forwarding" | "disable_ipv6" | "route_localnet"))
}

/// Gives each subnet that lacks a gateway its first address as one, if the bridge is to be one.
pub fn complete_gateways(bridge: &Bridge, ips: &mut [Ip]) {
    if bridge.gateway != Gateway::None {
        for ip in ips {
            ip.gateway = ip.gateway.or_else(|| first_of(ip.address));
        }
    }
}

/// Returns the routes that a sandbox with these addresses gets: those configured, and by default
/// everything through the gateway of each family, unless a route says otherwise.
pub fn routes(bridge: &Bridge, configured: &[result::Route], ips: &[Ip]) -> Vec<result::Route> {
    let mut routes = configured.to_vec();
    if bridge.gateway != Gateway::Default {
        return routes;
    }
    for is_v4 in [true, false] {
        let of_family = |ip: &&Ip| ip.address.is_ipv4() == is_v4;
        let Some(gateway) = ips.iter().find(of_family).and_then(|ip| ip.gateway) else { continue };
        let dst = everything(gateway);
        if !routes.iter().any(|route| route.dst == dst && route.gw.is_some()) {
            routes.push(result::Route { gw: Some(gateway), ..result::Route::to(dst) });
        }
    }
    routes
}

/// The first address of a subnet after that of the network itself.
fn first_of(address: IpNetwork) -> Option<IpAddr> {
    match address.network() {
        IpAddr::V4(network) => network.to_bits().checked_add(1).map(|ip| Ipv4Addr::from(ip).into()),
        IpAddr::V6(network) => network.to_bits().checked_add(1).map(|ip| Ipv6Addr::from(ip).into()),
    }
}

/// Returns the addresses that the bridge has for pods with these addresses.
pub fn gateways(bridge: &Bridge, ips: &[Ip]) -> Vec<IpNetwork> {
    if bridge.gateway == Gateway::None {
        return Vec::new();
    }
    let gateway = |ip: &Ip| IpNetwork::new(ip.gateway?, ip.address.prefix()).ok();
    ips.iter().filter_map(gateway).collect()
}

/// The name of the host's end: `veth` and eight digits that belong to the attachment.
pub fn host_veth(attachment: &Attachment) -> LinkName {
    let [a, b, c, d, ..] = digest(attachment);
    let name = format!("veth{a:02x}{b:02x}{c:02x}{d:02x}");
    name.parse().expect("twelve letters and digits are a name")
}

/// The remark on the host's end, which tells it from all others that may have the name.
pub fn alias(attachment: &Attachment) -> String {
    const MAX_BYTES: usize = 255;
    let Attachment { network, container, if_name } = attachment;
    let mut alias = format!("{container}/{if_name}/{network}");
    alias.truncate(alias.floor_char_boundary(MAX_BYTES));
    alias
}

/// Returns the container, the interface and the network of a remark that [`alias`] could have made.
pub fn of_alias(alias: &str) -> Option<(&str, &str, &str)> {
    let mut parts = alias.split('/');
    let attachment = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(attachment)
}

/// The names of all links on the host that an attachment may have for itself.
pub fn host_links(attachment: &Attachment) -> Vec<LinkName> {
    [host_veth(attachment)].into_iter().chain(bandwidth::ifb_names(attachment)).collect()
}

/// Whether a link with one of these names is of the attachment. A remark may be missing if somebody
/// else made the link.
pub fn is_host_link_of(attachment: &Attachment, name: LinkName, link: &Link) -> bool {
    let is_veth = name == host_veth(attachment) && matches!(link.kind, LinkKind::Veth(_));
    let is_marked = link.alias.as_ref().is_none_or(|remark| *remark == alias(attachment));
    (is_veth && is_marked) || bandwidth::is_ifb_of(attachment, name, link)
}

/// The Ethernet address that goes with an address.
pub fn mac_of(ip: IpAddr) -> MacAddr {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            MacAddr::local([0x0a, 0x58, a, b, c, d])
        }
        IpAddr::V6(ip) => {
            let hash = Sha256::digest(ip.octets());
            MacAddr::local([0x0a, hash[0], hash[1], hash[2], hash[3], hash[4]])
        }
    }
}

fn host(attachment: &Attachment, netns: &Path, bridge: &Bridge, ips: &[Ip]) -> NetState {
    let veth = host_veth(attachment);
    let mut state = NetState::default();
    state.links.insert(bridge.name, bridge_link(attachment, bridge, ips));
    state.links.insert(veth, veth_link(attachment, netns, bridge, ips));
    state.vlans.extend(bridge.vlans.port.iter().map(|(vid, vlan)| ((veth, *vid), *vlan)));
    let gateways = gateways(bridge, ips);
    if let (Some(vid), false) = (bridge.vlans.access, gateways.is_empty()) {
        add_vlan_gateway(&mut state, bridge, vid, ips);
    }
    for ip in gateways {
        let link = gateway_link(bridge);
        state.addresses.insert(Address { link, ip });
        let forwarding = match ip {
            IpNetwork::V4(_) => Sysctl::ipv4_forwarding(),
            IpNetwork::V6(_) => Sysctl::ipv6_forwarding(),
        };
        if ip.is_ipv6() && !bridge.probed {
            // The node asks for its pods from its link-local address, which comes from that of the
            // gateway; before that is known to be nobody else's, the first pod would not be reached.
            state.sysctls.insert(Sysctl::ipv6(link, "accept_dad"), "0".to_owned());
        }
        state.sysctls.insert(forwarding, "1".to_owned());
    }
    if bridge.ports.leads_loopback() && ips.iter().any(|ip| ip.address.is_ipv4()) {
        let route_localnet = Sysctl::ipv4(gateway_link(bridge), "route_localnet");
        state.sysctls.insert(route_localnet, "1".to_owned());
    }
    bandwidth::add_to(&mut state, attachment, veth, bridge.mtu, &bridge.limits);
    for (name, link) in &state.links {
        let (parameter, value) = match link.port {
            // A port speaks no IP itself. The routes of its link-local address are among those of
            // all ports, where each takes the kernel longer than the one before.
            Some(_) => ("addr_gen_mode", ADDR_GEN_MODE_NONE),
            // A pod must not configure the node.
            None => ("accept_ra", "0"),
        };
        state.sysctls.insert(Sysctl::ipv6(*name, parameter), value.to_owned());
    }
    state
}

/// The link by which the node is the gateway: the bridge, or for a VLAN a link of its own.
pub fn gateway_link(bridge: &Bridge) -> LinkName {
    bridge.vlans.gateway_name(bridge.name).expect("a name that is too long was refused")
}

/// The node is in a VLAN by a port of the bridge like everybody else, whose other end it keeps. All
/// pods of the VLAN share it.
fn add_vlan_gateway(state: &mut NetState, bridge: &Bridge, vid: u16, ips: &[Ip]) {
    let name = gateway_link(bridge);
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(name.as_str().as_bytes()).into();
    let port = format!("veth{a:02x}{b:02x}{c:02x}{d:02x}");
    let port: LinkName = port.parse().expect("twelve letters and digits are a name");
    let peer = VethPeer { name: port, netns: None, mac: None, mtu: bridge.mtu };
    let mac = ips.iter().find_map(|ip| ip.gateway).map(mac_of);
    let link = Link { mac, mtu: bridge.mtu, ..Link::up(LinkKind::Veth(Some(peer))) };
    state.links.insert(name, link);
    let member = BridgePort { bridge: bridge.name, hairpin: false, isolated: false };
    let link = Link { port: Some(member), mtu: bridge.mtu, ..Link::up(LinkKind::Veth(None)) };
    state.links.insert(port, link);
    state.vlans.insert((port, vid), PortVlan { pvid: true, untagged: true });
}

fn digest(attachment: &Attachment) -> [u8; 32] {
    let Attachment { network, container, if_name } = attachment;
    // No part can contain a slash.
    Sha256::digest(format!("{network}/{container}/{if_name}").as_bytes()).into()
}

/// Without an address of its own, a bridge takes that of one of its ports, and changes it with them;
/// every neighbour would have to learn it anew. One that is no gateway may be connected to others, so
/// its address comes from the identity of its first attachment, which no other node has.
fn bridge_link(attachment: &Attachment, bridge: &Bridge, ips: &[Ip]) -> Link {
    let [.., a, b, c, d, e, f, _, _, _, _, _, _] = digest(attachment);
    let own = || MacAddr::local([a, b, c, d, e, f]);
    // The gateway of a VLAN is not the bridge itself.
    let gateway = ips.iter().find_map(|ip| ip.gateway).filter(|_| bridge.vlans.access.is_none());
    let mac = Some(gateway.map_or_else(own, mac_of));
    Link {
        mac,
        mtu: bridge.mtu,
        promiscuous: bridge.promiscuous.then_some(true),
        vlan_filtering: bridge.vlans.filtering.then_some(true),
        ..Link::up(LinkKind::Bridge)
    }
}

fn veth_link(attachment: &Attachment, netns: &Path, bridge: &Bridge, ips: &[Ip]) -> Link {
    let peer = VethPeer {
        name: attachment.if_name,
        netns: Some(netns.to_owned()),
        mac: Some(pod_mac(attachment, bridge, ips)),
        mtu: bridge.mtu,
    };
    Link {
        mac: Some(host_mac(attachment)),
        mtu: bridge.mtu,
        port: Some(BridgePort {
            bridge: bridge.name,
            hairpin: bridge.hairpin,
            isolated: bridge.isolated,
        }),
        alias: Some(alias(attachment)),
        ..Link::up(LinkKind::Veth(Some(peer)))
    }
}

fn sandbox(
    attachment: &Attachment,
    bridge: &Bridge,
    ips: &[Ip],
    routes: &[result::Route],
) -> NetState {
    let mac = Some(pod_mac(attachment, bridge, ips));
    let up = bridge.up;
    let interface = Link { mac, mtu: bridge.mtu, up, ..Link::up(LinkKind::Veth(None)) };
    let if_name = attachment.if_name;
    let mut state = inside(if_name, interface, ips, routes);
    let is_v4 = !ips.is_empty() && ips.iter().all(|ip| ip.address.is_ipv4());
    if is_v4 && bridge.gateway == Gateway::Default {
        // What a link-local address says to everybody each port of the bridge gets a copy of, eight
        // times in the first seconds; all it could reach here is the node and other pods.
        let mode = Sysctl::ipv6(if_name, "addr_gen_mode");
        state.sysctls.insert(mode, ADDR_GEN_MODE_NONE.to_owned());
    }
    if bridge.probed {
        let is_v6 = |address: &&Address| address.ip.is_ipv6();
        state.probed = state.addresses.iter().filter(is_v6).copied().collect();
        for parameter in ["accept_dad", "enhanced_dad"] {
            state.sysctls.insert(Sysctl::ipv6(if_name, parameter), "1".to_owned());
        }
    }
    state
}

/// Returns what shall be in a sandbox whose interface has these addresses and routes.
pub fn inside(
    if_name: LinkName,
    interface: Link,
    ips: &[Ip],
    routes: &[result::Route],
) -> NetState {
    let mut state = NetState::default();
    state.links.insert(if_name, interface);
    state.links.insert(loopback(), Link::up(LinkKind::Loopback));
    state.addresses = ips.iter().map(|ip| Address { link: if_name, ip: ip.address }).collect();
    // Where several have the same destination and metric, the kernel uses the first.
    let kernel_routes = routes.iter().map(|route| kernel_route(if_name, ips, route));
    state.routes = kernel_routes.rev().collect();
    state.sysctls.insert(Sysctl::ipv4(if_name, "arp_notify"), "1".to_owned());
    if ips.iter().any(|ip| ip.address.is_ipv6()) {
        for link in [loopback(), if_name] {
            state.sysctls.insert(Sysctl::ipv6(link, "disable_ipv6"), "0".to_owned());
        }
        state.sysctls.insert(Sysctl::ipv6(if_name, "keep_addr_on_down"), "1".to_owned());
    }
    state
}

/// A route without gateway goes through that of its family, if there is one.
fn kernel_route(if_name: LinkName, ips: &[Ip], route: &result::Route) -> (RouteKey, Route) {
    let is_v4 = route.dst.is_ipv4();
    let gateway_of = |ip: &Ip| ip.gateway.filter(|gateway| gateway.is_ipv4() == is_v4);
    let via = route.gw.or_else(|| ips.iter().find_map(gateway_of));
    let mut key = RouteKey::main(network(route.dst));
    key.table = route.table.unwrap_or(key.table);
    if route.priority != 0 {
        key.metric = route.priority;
    }
    (key, Route { link: if_name, via, onlink: false, protocol: ROUTE_PROTOCOL, source: None })
}

fn pod_mac(attachment: &Attachment, bridge: &Bridge, ips: &[Ip]) -> MacAddr {
    bridge.mac.unwrap_or_else(|| own_mac(attachment, ips))
}

/// The Ethernet address of an interface in a sandbox if nobody asked for another one.
pub fn own_mac(attachment: &Attachment, ips: &[Ip]) -> MacAddr {
    let [_, _, _, _, a, b, c, d, e, f, ..] = digest(attachment);
    let own = || MacAddr::local([a, b, c, d, e, f]);
    ips.first().map_or_else(own, |ip| mac_of(ip.address.ip()))
}

/// The Ethernet address of the host's end.
pub fn host_mac(attachment: &Attachment) -> MacAddr {
    let [.., a, b, c, d, e, f] = digest(attachment);
    MacAddr::local([a, b, c, d, e, f])
}

/// The value of the parameter `addr_gen_mode` for no link-local address.
const ADDR_GEN_MODE_NONE: &str = "1";

fn loopback() -> LinkName {
    "lo".parse().expect("two letters are a name")
}

fn everything(gateway: IpAddr) -> IpNetwork {
    let any = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    IpNetwork::new(any, 0).expect("zero is a prefix length")
}

/// The network that an address is in.
pub fn network(ip: IpNetwork) -> IpNetwork {
    IpNetwork::new(ip.network(), ip.prefix()).expect("a prefix of this family")
}

#[cfg(test)]
mod tests;
