//! The plugins that this one file is, told apart by the name it is run under.

use std::fmt;
use std::path::Path;

use crate::version::Version;

/// A plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// Makes the configuration of a bridge from what the agent says, and then is that.
    Flannel,
    /// Makes a veth pair between a bridge and a sandbox.
    Bridge,
    /// Hands out addresses.
    HostLocal,
    /// Brings the loopback interface of a sandbox up.
    Loopback,
    /// Leads ports of the node to a pod.
    Portmap,
    /// Hands out the addresses that the configuration names.
    Static,
    /// Limits how much a pod may send and receive.
    Bandwidth,
    /// Lets the node forward for a pod.
    Firewall,
    /// Changes properties of a pod's interface and parameters of its namespace.
    Tuning,
    /// Makes a veth pair between the node itself and a sandbox.
    Ptp,
    /// Gives a sandbox an interface on a link of the node.
    Macvlan,
}

impl Plugin {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Flannel,
        Self::Bridge,
        Self::HostLocal,
        Self::Loopback,
        Self::Portmap,
        Self::Static,
        Self::Bandwidth,
        Self::Firewall,
        Self::Tuning,
        Self::Ptp,
        Self::Macvlan,
    ];

    /// Returns the name that network lists have for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flannel => "flannel",
            Self::Bridge => "bridge",
            Self::HostLocal => "host-local",
            Self::Loopback => "loopback",
            Self::Portmap => "portmap",
            Self::Static => "static",
            Self::Bandwidth => "bandwidth",
            Self::Firewall => "firewall",
            Self::Tuning => "tuning",
            Self::Ptp => "ptp",
            Self::Macvlan => "macvlan",
        }
    }

    /// Returns the oldest version of the specification that it can work with: some cannot without
    /// the result of the plugins before them.
    pub const fn oldest_version(self) -> Version {
        match self {
            Self::Flannel
            | Self::Bridge
            | Self::HostLocal
            | Self::Loopback
            | Self::Portmap
            | Self::Static
            | Self::Tuning
            | Self::Ptp
            | Self::Macvlan => Version::V0_1_0,
            Self::Firewall => Version::V0_4_0,
            Self::Bandwidth => Version::V0_3_0,
        }
    }

    /// Returns the plugin of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plugin| plugin.as_str() == name)
    }

    /// Returns the plugin that a program is by the path it was run by. Under a name that says
    /// nothing it is `flannel`.
    pub fn of_program(path: &Path) -> Self {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(Self::named).unwrap_or(Self::Flannel)
    }
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_decides() {
        let table = [
            ("/opt/cni/bin/bridge", Plugin::Bridge),
            ("host-local", Plugin::HostLocal),
            ("./flannel", Plugin::Flannel),
            ("/opt/cni/bin/flannel-amd64", Plugin::Flannel),
            ("", Plugin::Flannel),
        ];
        for (path, expected) in table {
            assert_eq!(Plugin::of_program(Path::new(path)), expected, "{path}");
        }
    }
}
