//! What can happen to a node behind flanneld's back, and what must not be touched in putting it right.

use flannel_tests::node::Node;
use flannel_tests::{program, wait};

/// What happens to a node.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) strike: fn(&Place<'_>),
    pub(crate) traffic: Traffic,
}

/// What a fault does to packets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// No packet may be lost.
    Survives,
    /// Packets are lost until it is healed.
    Stops,
}

/// Where faults strike: a node, its device to the peers, and one of its families.
pub(crate) struct Place<'a> {
    pub(crate) node: &'a Node,
    pub(crate) device: &'static str,
    pub(crate) ipv6: bool,
}

impl Place<'_> {
    /// Runs `ip` for the family; `DEV` stands for the device.
    fn ip(&self, arguments: &str) -> String {
        self.node.ip(&self.arguments(arguments))
    }

    /// The same where somebody else may be faster.
    fn try_ip(&self, arguments: &str) -> Result<String, String> {
        self.node.namespace().try_ip(&self.arguments(arguments))
    }

    fn arguments(&self, arguments: &str) -> String {
        let family = if self.ipv6 { "-6" } else { "-4" };
        format!("{family} {}", arguments.replace("DEV", self.device))
    }

    fn bridge(&self, arguments: &str) -> String {
        self.node.bridge(&arguments.replace("DEV", self.device))
    }

    /// Writes to a file below `/proc/sys/net`.
    fn write_parameter(&self, path: &str, value: &'static str) {
        let path = format!("/proc/sys/net/{}", path.replace("DEV", self.device));
        let written = self.node.namespace().inside(move || std::fs::write(path, value));
        assert!(written.is_ok(), "{written:?}");
    }

    fn either(&self, ipv4: &'static str, ipv6: &'static str) -> &'static str {
        if self.ipv6 { ipv6 } else { ipv4 }
    }

    /// The routes to peers.
    fn routes(&self) -> Vec<String> {
        let routes = self.ip("route show proto 199");
        routes.lines().filter(|route| route.contains(" via ")).map(str::to_owned).collect()
    }

    /// The first words of what a command lists, which are addresses.
    fn neighbours(&self) -> Vec<String> {
        firsts(&self.ip("neighbour show dev DEV nud permanent"))
    }

    fn fdb(&self) -> Vec<String> {
        firsts(&self.bridge("fdb show dev DEV"))
    }

    fn pod_route(&self) -> &'static str {
        self.either(POD_ROUTE, POD_ROUTE6)
    }

    /// A subnet that nobody leases, and its base: new leases are among the first hundred free ones.
    fn node_of_nobody(&self) -> (&'static str, &'static str) {
        if self.ipv6 {
            ("2001:db8:42:99::/64", "2001:db8:42:99::")
        } else {
            ("10.244.199.0/24", "10.244.199.0")
        }
    }
}

fn firsts(listing: &str) -> Vec<String> {
    listing.lines().map(|line| first(line).to_owned()).collect()
}

/// The first word, which in listings is the destination or address.
fn first(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

const fn fault(name: &'static str, traffic: Traffic, strike: fn(&Place<'_>)) -> Fault {
    Fault { name, strike, traffic }
}

const DEVICE_DELETED: Fault = fault("device deleted", Traffic::Stops, |at| {
    at.ip("link delete DEV");
});
const DEVICE_DOWN: Fault = fault("device down", Traffic::Stops, |at| {
    at.ip("link set DEV down");
});
const MTU_CHANGED: Fault = fault("MTU changed", Traffic::Survives, |at| {
    at.ip("link set DEV mtu 1300");
});
const ADDRESS_LOST: Fault = fault("address lost", Traffic::Stops, |at| {
    at.ip("address flush dev DEV scope global");
});
const ADDRESS_ADDED: Fault = fault("address added", Traffic::Survives, |at| {
    let address = at.either("10.244.177.7/32", "2001:db8:42:77::7/128");
    at.ip(&format!("address add {address} dev DEV"));
});
const ROUTE_DELETED: Fault = fault("route deleted", Traffic::Stops, |at| {
    at.ip(&format!("route delete {}", first(&at.routes()[0])));
});
const ROUTES_PURGED: Fault = fault("routes purged by protocol", Traffic::Stops, |at| {
    at.ip("route flush proto 199");
    // What the plugin made for pods, it makes again.
    at.ip(&format!("route add {}", at.pod_route()));
});
const RULES_FLUSHED: Fault = fault("rules flushed", Traffic::Survives, flush_rules);
const SUBNET_FILE_REMOVED: Fault = fault("subnet file removed", Traffic::Survives, |at| {
    let removed = std::fs::remove_file(at.node.directory("/run/flannel/subnet.env"));
    assert!(removed.is_ok(), "{removed:?}");
});
const UNDERLAY_FLAP: Fault = fault("underlay down and up", Traffic::Stops, flap);
const STORM: Fault = fault("more notifications than anybody reads", Traffic::Stops, storm);

/// To a node with tunnels of the kernel.
pub(crate) const VXLAN: &[Fault] = &[
    DEVICE_DELETED,
    DEVICE_DOWN,
    fault("device renamed", Traffic::Stops, |at| {
        rename(at);
        // By now it may have its old name again.
        let _ = at.try_ip("link set stray up");
    }),
    fault("MAC changed", Traffic::Stops, |at| {
        at.ip("link set DEV address 02:00:00:00:00:99");
    }),
    MTU_CHANGED,
    fault("learning switched on", Traffic::Survives, |at| {
        at.ip("link set DEV type vxlan learning");
    }),
    ADDRESS_LOST,
    ADDRESS_ADDED,
    ROUTE_DELETED,
    fault("route replaced", Traffic::Stops, |at| {
        let (routes, hop) = (at.routes(), at.either("10.244.199.0", "2001:db8:42:99::"));
        at.ip(&format!("route replace {} via {hop} dev DEV onlink", first(&routes[0])));
    }),
    ROUTES_PURGED,
    fault("route to nobody added", Traffic::Survives, |at| {
        let (subnet, hop) = at.node_of_nobody();
        at.ip(&format!("route add {subnet} via {hop} dev DEV onlink"));
    }),
    fault("neighbours deleted", Traffic::Stops, |at| {
        for ip in at.neighbours() {
            at.ip(&format!("neighbour delete {ip} dev DEV"));
        }
    }),
    fault("neighbours altered", Traffic::Stops, |at| {
        for ip in at.neighbours() {
            at.ip(&format!("neighbour replace {ip} lladdr 02:00:00:00:00:99 dev DEV"));
        }
    }),
    fault("FDB entries deleted", Traffic::Stops, |at| {
        for mac in at.fdb() {
            at.bridge(&format!("fdb delete {mac} dev DEV"));
        }
    }),
    fault("FDB entries altered", Traffic::Stops, |at| {
        let vtep = at.either("198.51.100.99", "fd99::99");
        for mac in at.fdb() {
            at.bridge(&format!("fdb replace {mac} dev DEV dst {vtep}"));
        }
    }),
    RULES_FLUSHED,
    fault("kernel parameter changed", Traffic::Survives, |at| {
        at.write_parameter("ipv6/conf/DEV/accept_ra", "1");
    }),
    SUBNET_FILE_REMOVED,
    UNDERLAY_FLAP,
    STORM,
];

/// To a node with plain routes.
pub(crate) const HOST_GW: &[Fault] = &[
    ROUTE_DELETED,
    fault("route replaced", Traffic::Stops, |at| {
        let routes = at.routes();
        let other = routes[1].split(" via ").nth(1).map_or("", first);
        at.ip(&format!("route replace {} via {other}", first(&routes[0])));
    }),
    ROUTES_PURGED,
    fault("route to nobody added", Traffic::Survives, |at| {
        let ((subnet, _), hop) = (at.node_of_nobody(), at.either("198.51.100.99", "fd99::99"));
        at.ip(&format!("route add {subnet} via {hop} dev DEV proto 199"));
    }),
    RULES_FLUSHED,
    SUBNET_FILE_REMOVED,
    UNDERLAY_FLAP,
    STORM,
];

/// To a node that carries packets itself.
pub(crate) const UDP: &[Fault] = &[
    DEVICE_DELETED,
    DEVICE_DOWN,
    fault("device renamed", Traffic::Stops, rename),
    MTU_CHANGED,
    ADDRESS_LOST,
    ADDRESS_ADDED,
    fault("route deleted", Traffic::Stops, |at| {
        at.ip("route delete 10.244.0.0/16");
    }),
    ROUTES_PURGED,
    fault("route to nobody added", Traffic::Survives, |at| {
        let (subnet, _) = at.node_of_nobody();
        at.ip(&format!("route add {subnet} dev DEV"));
    }),
    RULES_FLUSHED,
    fault("kernel parameter changed", Traffic::Survives, |at| {
        at.write_parameter("ipv4/conf/DEV/accept_local", "0");
    }),
    SUBNET_FILE_REMOVED,
    UNDERLAY_FLAP,
    STORM,
];

/// Older kernels rename a device only while it is down, and flanneld does not leave it down for long.
fn rename(at: &Place<'_>) {
    wait::until("the device has another name", || {
        at.try_ip("link set DEV down")?;
        at.try_ip("link set DEV name stray")
    });
}

/// What `nft flush ruleset` does to ours; somebody else restores what is theirs.
fn flush_rules(at: &Place<'_>) {
    let nft = |script: &str| program::run(at.node.namespace().command("nft").arg(script));
    let foreign = nft("list table inet foreign");
    nft(&format!("flush ruleset\n{foreign}"));
}

/// The administrator's part of what a flap takes away comes back with the link.
fn flap(at: &Place<'_>) {
    let node = at.node;
    let defaults =
        ["-4", "-6"].map(|family| (family, node.ip(&format!("{family} route show default"))));
    node.ip("link set eth0 down");
    node.ip("link set eth0 up");
    node.ip(&format!("address replace {}/64 dev eth0 nodad", node.address6()));
    for (family, routes) in defaults {
        for route in routes.lines() {
            node.ip(&format!("{family} route replace {}", route.replace("pref medium", "")));
        }
    }
}

/// Thousands of changes next to ours, and one of ours in the middle.
fn storm(at: &Place<'_>) {
    let foreign = |verb: &str| -> String {
        let octets = (0..20_u8).flat_map(|high| (0..250_u8).map(move |low| (high, low)));
        octets
            .map(|(high, low)| format!("route {verb} 172.16.{high}.{low}/32 dev eth0\n"))
            .collect()
    };
    let ours = format!("route flush proto 199\nroute add {}\n", at.pod_route());
    let family = if at.ipv6 { "-6" } else { "-4" };
    let batches = [("-4", foreign("add")), (family, ours), ("-4", foreign("delete"))];
    for (family, batch) in batches {
        let written = std::fs::write("/run/storm.batch", batch);
        assert!(written.is_ok(), "{written:?}");
        let mut ip = program::installed("ip");
        program::run(ip.args([family, "-n", at.node.name(), "-batch", "/run/storm.batch"]));
    }
}

/// What the plugin ptp makes for a pod: inside the network, with our mark, but not the agent's.
const POD_ROUTE: &str = "10.244.0.77/32 dev foreign0 proto 199";
const POD_ROUTE6: &str = "2001:db8:42::77/128 dev foreign0 proto 199";

/// Things that look like ours, or are in their way, but belong to somebody else.
pub(crate) fn plant_foreign_objects(node: &Node) {
    node.ip("address add 203.0.113.7/24 dev eth0");
    node.ip("link add foreign0 type bridge");
    node.ip("address add 10.245.0.1/24 dev foreign0");
    node.ip("address add 2001:db8:99::1/64 dev foreign0 nodad");
    node.ip("link set foreign0 up");
    node.ip("link add flannel.77 address 02:77:00:00:00:01 type vxlan id 77 dstport 4789 dev eth0");
    node.ip("link set flannel.77 up");
    node.ip("neighbour add 10.245.9.9 lladdr 02:77:00:00:00:02 dev flannel.77 nud permanent");
    node.bridge("fdb add 02:77:00:00:00:02 dev flannel.77 dst 198.51.100.77");
    node.ip("route add 10.245.9.0/24 dev flannel.77");
    node.ip("route add 10.244.200.0/24 dev foreign0");
    node.ip("route add 2001:db8:42:c8::/64 dev foreign0");
    node.ip("route add 10.244.2.0/24 dev foreign0 table 77");
    node.ip("route add 2001:db8:42:2::/64 dev foreign0 table 77");
    node.ip("route add 172.30.0.0/16 dev foreign0 proto 199 table 78");
    node.ip(&format!("route add {POD_ROUTE}"));
    node.ip(&format!("-6 route add {POD_ROUTE6}"));
    let rules =
        "table inet foreign { chain forward { type filter hook forward priority 5; accept; }; }";
    program::run(node.namespace().command("nft").arg(rules));
}
