//! The network between nodes: 198.51.100.0/24 and fd99::/64, a bridge in a namespace of its own.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::bad_link::BadLink;
use crate::device::{self, Layer};
use crate::impairment::Impairment;
use crate::namespace::Namespace;

/// The bridge that joins hosts; its own addresses are their default gateways.
#[derive(Debug)]
pub struct Underlay {
    bridge: Namespace,
}

/// The gateway of every host.
pub const GATEWAY: Ipv4Addr = Underlay::address(254);
/// The same for IPv6.
pub const GATEWAY6: Ipv6Addr = Underlay::address6(254);

impl Underlay {
    /// Makes the namespace `underlay` with the bridge `br0`.
    pub fn create() -> Self {
        let bridge = Namespace::create("underlay");
        bridge.ip("link add br0 type bridge");
        bridge.ip(&format!("address add {GATEWAY}/24 dev br0"));
        bridge.ip(&format!("address add {GATEWAY6}/64 dev br0 nodad"));
        bridge.ip("link set br0 up");
        Self { bridge }
    }

    /// The address of host `number`.
    pub const fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, number)
    }

    /// The IPv6 address of host `number`.
    pub const fn address6(number: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number as u16)
    }

    /// Makes a host: a namespace with an `eth0` on the underlay, its addresses and default routes.
    pub fn host(&self, name: &str, number: u8) -> Namespace {
        let host = Namespace::create(name);
        self.plug(name, "eth0", name);
        self.configure(&host, number);
        host
    }

    /// Gives a host another link to the underlay, which loses and delays frames, and has none of
    /// the offloads of other links; the host has only the addresses and routes of a new one.
    ///
    /// # Panics
    /// If interfaces cannot be made.
    pub fn impair(&self, host: &Namespace, number: u8, way: Impairment) -> BadLink {
        host.ip("link delete eth0");
        let port = host.name().to_owned();
        let ends = [
            host.inside(|| device::open("eth0", Layer::Ethernet)),
            self.bridge.inside(move || device::open(&port, Layer::Ethernet)),
        ];
        self.bridge.ip(&format!("link set {} master br0 up", host.name()));
        self.configure(host, number);
        BadLink::between(ends.map(|end| end.expect("there is /dev/net/tun")), way)
    }

    fn configure(&self, host: &Namespace, number: u8) {
        let address = Self::address(number);
        host.ip(&format!("address add {address}/24 dev eth0"));
        host.ip(&format!("address add {}/64 dev eth0 nodad", Self::address6(number)));
        host.ip("link set eth0 up");
        host.ip(&format!("route add default via {GATEWAY}"));
        host.ip(&format!("route add default via {GATEWAY6}"));
        host.wait_until_operational("eth0");
        self.bridge.wait_until_operational(host.name());
    }

    /// Gives a network namespace, by its name or the process in it, a link to the bridge, whose end
    /// there is called `port`.
    pub fn plug(&self, port: &str, link: &str, namespace: &str) {
        let peer = format!("name {link} netns {namespace}");
        self.bridge.ip(&format!("link add {port} type veth peer {peer}"));
        self.bridge.ip(&format!("link set {port} master br0 up"));
    }

    /// Gives a host and its port another MTU.
    pub fn set_mtu(&self, host: &Namespace, mtu: u32) {
        host.ip(&format!("link set eth0 mtu {mtu}"));
        self.bridge.ip(&format!("link set {} mtu {mtu}", host.name()));
    }

    /// Takes a host off the network; its `eth0` stays up.
    pub fn disconnect(&self, host: &Namespace) {
        self.bridge.ip(&format!("link set {} nomaster", host.name()));
    }

    /// Puts a host back on the network.
    pub fn reconnect(&self, host: &Namespace) {
        self.bridge.ip(&format!("link set {} master br0", host.name()));
    }
}
