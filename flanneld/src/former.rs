//! What an earlier configuration of this node may have left in its kernel: routes inside networks
//! that it does not serve any more, and tunnels that it does not use any more.
//!
//! The subnet file of the last run tells which these are. It does not outlive the kernel's state:
//! both are gone after a reboot.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::netlink::{Interface, Routes, Scope};
use fabric::subnet_file::SubnetFile;
use ipnetwork::IpNetwork;

use crate::backend;

/// Networks and tunnels of former configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Former {
    networks: BTreeSet<IpNetwork>,
    tunnels: BTreeSet<LinkName>,
}

impl Former {
    /// Finds what the last run left, among the links of this host.
    pub(crate) fn find(file: &SubnetFile, interfaces: &[Interface]) -> Self {
        let ours: Vec<IpAddr> = file.subnets().map(|subnet| subnet.network()).collect();
        let tunnels = interfaces.iter().filter(|interface| {
            backend::is_device(interface.name.as_str())
                && interface.addresses.iter().any(|address| ours.contains(&address.ip))
        });
        Self {
            networks: file.networks().collect(),
            tunnels: tunnels.map(|interface| interface.name).collect(),
        }
    }

    /// Remembers networks that are about to be replaced.
    pub(crate) fn remember(&mut self, networks: impl IntoIterator<Item = IpNetwork>) {
        self.networks.extend(networks);
    }

    /// Returns what is ours of it, but for the tunnels that peers may still send to. These are asked
    /// for only if there are others than the `current` ones.
    pub(crate) fn scope(
        &self,
        current: &BTreeSet<LinkName>,
        in_use: impl FnOnce() -> BTreeSet<LinkName>,
    ) -> Scope {
        if self.networks.is_empty() {
            return Scope::default();
        }
        let mut links = &self.tunnels - current;
        if !links.is_empty() {
            links = &links - &in_use();
        }
        Scope {
            links,
            routes: Routes::OnLinksAndMarked,
            networks: self.networks.iter().copied().collect(),
            ..Scope::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use fabric::netlink::InterfaceAddress;

    use super::*;

    fn interface(name: &str, ip: &str) -> Interface {
        let ip = ip.parse().unwrap();
        let address = InterfaceAddress {
            ip,
            link_scope: false,
            permanent: true,
            deprecated: false,
            temporary: false,
        };
        Interface { name: name.parse().unwrap(), mtu: 1500, up: true, addresses: vec![address] }
    }

    #[test]
    fn tunnels_with_the_base_of_our_subnet_are_ours_until_no_peer_needs_them() {
        let subnets = ["10.244.3.0/24", "fd00:10:244:3::/64"].map(|text| text.parse().unwrap());
        let networks = ["10.244.0.0/16", "fd00:10:244::/56"].map(|text| text.parse().unwrap());
        let file = SubnetFile::new(networks, subnets, 1450, true);
        let former = Former::find(
            &file,
            &[
                interface("flannel.1", "10.244.3.0"),
                interface("flannel-v6.7", "fd00:10:244:3::"),
                interface("flannel0", "10.244.3.0"),
                interface("flannel.2", "10.244.4.0"),
                interface("flannel.x", "10.244.3.0"),
                interface("cni0", "10.244.3.1"),
                interface("eth0", "10.244.3.0"),
            ],
        );
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let scope = former.scope(&names(&["flannel0"]), || names(&["flannel.1"]));
        assert_eq!(scope.links, names(&["flannel-v6.7"]));
        assert_eq!(scope.networks, networks);
        let nothing = Former::default().scope(&names(&[]), || names(&[]));
        assert_eq!((nothing.links.len(), nothing.networks.len()), (0, 0));
    }
}
