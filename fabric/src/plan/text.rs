//! A plan as the `ip` and `bridge` commands that would do the same.

use std::fmt;

use super::links::underlay;
use super::{LinkChange, Op, Plan};
use crate::netstate::{Address, Link, LinkKind, ROUTE_PROTOCOL, Route, RouteKey, Vxlan};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink(name, link) if link.kind == LinkKind::Tun => {
                write!(f, "ip tuntap add dev {name} mode tun multi_queue vnet_hdr")
            }
            Self::AddLink(name, link) => write!(f, "ip link add {name}{link}"),
            Self::AddLinkIn(netns, name, link) => {
                write!(f, "ip link add {name} netns {}{link}", netns.display())
            }
            Self::DelLink(name) => write!(f, "ip link del {name}"),
            Self::SetLink(name, LinkChange::Hairpin(on)) => {
                write!(f, "bridge link set dev {name} hairpin {}", on_off(*on))
            }
            Self::SetLink(name, LinkChange::Isolated(on)) => {
                write!(f, "bridge link set dev {name} isolated {}", on_off(*on))
            }
            Self::SetLink(name, change) => write!(f, "ip link set {name} {change}"),
            Self::SetSysctl(key, value) => write!(f, "sysctl -w {key}={value}"),
            Self::SetTxChecksum(link, on) => write!(f, "ethtool -K {link} tx {}", on_off(*on)),
            Self::ReplaceAddress(Address { link, ip }) => {
                write!(f, "ip address replace {ip} dev {link}")
            }
            Self::ReplaceUnroutedAddress(Address { link, ip }) => {
                write!(f, "ip address replace {ip} dev {link} noprefixroute")
            }
            Self::ProbeAddress(Address { link, ip }) => {
                write!(f, "ip address replace {ip} dev {link} # after duplicate address detection")
            }
            Self::DelAddress(Address { link, ip }) => write!(f, "ip address del {ip} dev {link}"),
            Self::ReplaceNeighbour(link, ip, mac) => {
                write!(f, "ip neigh replace {ip} lladdr {mac} dev {link} nud permanent")
            }
            Self::DelNeighbour(link, ip) => write!(f, "ip neigh del {ip} dev {link}"),
            Self::ReplaceFdbEntry(link, mac, vtep) => {
                write!(f, "bridge fdb replace {mac} dev {link} dst {vtep} self permanent")
            }
            Self::DelFdbEntry(link, mac, vtep) => {
                write!(f, "bridge fdb del {mac} dev {link} dst {vtep} self")
            }
            Self::ReplaceVlan(link, vid, vlan) => {
                write!(f, "bridge vlan add vid {vid} dev {link}{vlan}")
            }
            Self::DelVlan(link, vid) => write!(f, "bridge vlan del vid {vid} dev {link}"),
            Self::ClearVlans(link) => write!(f, "bridge vlan del vid 1-4094 dev {link}"),
            Self::AddRoute(key, route) => write!(f, "ip route add {}", RouteText(key, route)),
            Self::ReplaceRoute(key, route) => {
                write!(f, "ip route replace {}", RouteText(key, route))
            }
            Self::DelRoute(key, route) => write!(f, "ip route del {}", RouteText(key, route)),
            Self::AddBlackhole(key) => write!(f, "ip route add blackhole {}", KeyText(key)),
            Self::DelBlackhole(key) => write!(f, "ip route del blackhole {}", KeyText(key)),
            Self::ReplaceShaper(link, bucket) => {
                write!(f, "tc qdisc replace dev {link} root handle 1: tbf{bucket}")
            }
            Self::DelShaper(link) => write!(f, "tc qdisc del dev {link} root"),
            Self::AddIngress(link) => write!(f, "tc qdisc add dev {link} handle ffff: ingress"),
            Self::AddRedirect(link, to) => write!(
                f,
                "tc filter add dev {link} parent ffff: protocol all prio 1 u32 match u32 0 0 \
                 action mirred egress redirect dev {to}"
            ),
            Self::DelIngress(link) => write!(f, "tc qdisc del dev {link} ingress"),
        }
    }
}

/// As `ip link add NAME` continues.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(port) = self.port {
            write!(f, " master {}", port.bridge)?;
        }
        if let Some(parent) = underlay(self).filter(|_| matches!(self.kind, LinkKind::Macvlan(_))) {
            write!(f, " link {parent}")?;
        }
        if let Some(length) = self.queue_length {
            write!(f, " txqueuelen {length}")?;
        }
        write!(f, " type {}", self.kind.as_str())?;
        if let Some(on) = self.vlan_filtering {
            write!(f, " vlan_filtering {}", u8::from(on))?;
        }
        match &self.kind {
            LinkKind::Vxlan(vxlan) => write!(f, "{vxlan}"),
            LinkKind::Veth(Some(peer)) => {
                write!(f, " peer name {}", peer.name)?;
                if let Some(netns) = &peer.netns {
                    write!(f, " netns {}", netns.display())?;
                }
                if let Some(mac) = peer.mac {
                    write!(f, " address {mac}")?;
                }
                peer.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
            }
            LinkKind::Macvlan(macvlan) => {
                write!(f, " mode {}", macvlan.mode.as_str())?;
                macvlan.broadcast_queue.map_or(Ok(()), |length| write!(f, " bcqueuelen {length}"))
            }
            LinkKind::Loopback
            | LinkKind::Ifb
            | LinkKind::Bridge
            | LinkKind::Veth(None)
            | LinkKind::Tun
            | LinkKind::Other(_) => Ok(()),
        }
    }
}

/// As `ip link add NAME type vxlan` continues.
impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " id {}", self.vni)?;
        if let Some(local) = self.local {
            write!(f, " local {local}")?;
        }
        if let Some(underlay) = self.underlay {
            write!(f, " dev {underlay}")?;
        }
        write!(f, " dstport {}", self.port)?;
        f.write_str(if self.learning { " learning" } else { " nolearning" })?;
        f.write_str(if self.gbp { " gbp" } else { "" })
    }
}

/// As `ip link set NAME` continues.
impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Down => f.write_str("down"),
            Self::Mtu(mtu) => write!(f, "mtu {mtu}"),
            Self::Mac(mac) => write!(f, "address {mac}"),
            Self::Master(bridge) => write!(f, "master {bridge}"),
            Self::Hairpin(on) => write!(f, "type bridge_slave hairpin {}", on_off(*on)),
            Self::Isolated(on) => write!(f, "type bridge_slave isolated {}", on_off(*on)),
            Self::VlanFiltering(on) => write!(f, "type bridge vlan_filtering {}", u8::from(*on)),
            Self::Alias(alias) => write!(f, "alias {alias:?}"),
            Self::Promiscuous(on) => write!(f, "promisc {}", on_off(*on)),
            Self::AllMulticast(on) => write!(f, "allmulticast {}", on_off(*on)),
            Self::QueueLength(length) => write!(f, "txqueuelen {length}"),
            Self::VxlanLocal(local) => write!(f, "type vxlan local {local}"),
            Self::VxlanUnderlay(underlay) => write!(f, "type vxlan dev {underlay}"),
            Self::VxlanLearning(true) => f.write_str("type vxlan learning"),
            Self::VxlanLearning(false) => f.write_str("type vxlan nolearning"),
        }
    }
}

const fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A marked route that leads nowhere.
struct KeyText<'a>(&'a RouteKey);

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteKey { table, destination, metric } = self.0;
        write!(f, "{destination} table {table} proto {ROUTE_PROTOCOL} metric {metric}")
    }
}

struct RouteText<'a>(&'a RouteKey, &'a Route);

impl fmt::Display for RouteText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, route) = self;
        write!(f, "{}", key.destination)?;
        if let Some(via) = route.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", route.link)?;
        if key.table != RouteKey::TABLE_MAIN {
            write!(f, " table {}", key.table)?;
        }
        write!(f, " proto {}", route.protocol)?;
        if key.metric != RouteKey::main(key.destination).metric {
            write!(f, " metric {}", key.metric)?;
        }
        if let Some(source) = route.source {
            write!(f, " src {source}")?;
        }
        f.write_str(if route.onlink { " onlink" } else { "" })
    }
}
