//! Packets between a host and etcd that do not arrive, while everything else does.

use crate::namespace::Namespace;
use crate::program;

/// Which packets are dropped, as the host sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that come: what the host says is still heard.
    In,
    /// Those that go: what is said to the host is still heard.
    Out,
    /// All.
    Both,
}

/// Drops what a host and the ports of etcd tell each other; connections stay open and silent.
pub fn cut(host: &Namespace, direction: Direction) {
    let chain = |hook: &str, interface: &str| {
        format!(
            "add chain inet partition {hook} {{ type filter hook {hook} priority -300; }}\n\
             add rule inet partition {hook} {interface} != lo tcp dport 2379-2380 drop\n\
             add rule inet partition {hook} {interface} != lo tcp sport 2379-2380 drop\n"
        )
    };
    let mut script = "add table inet partition\n".to_owned();
    if direction != Direction::Out {
        script += &chain("input", "iifname");
    }
    if direction != Direction::In {
        script += &chain("output", "oifname");
    }
    program::run(host.command("nft").arg(script));
}

/// Lets everything through again.
pub fn heal(host: &Namespace) {
    program::run(host.command("nft").args(["delete", "table", "inet", "partition"]));
}
