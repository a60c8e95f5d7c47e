//! Network configurations of clusters, as an administrator writes them.

use crate::rule_engine::RuleEngine;

/// The address families of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// 10.244.0.0/16
    Ipv4,
    /// Both.
    Dual,
    /// 2001:db8:42::/56
    Ipv6,
}

impl Stack {
    /// How many addresses a pod has.
    pub const fn families(self) -> usize {
        match self {
            Self::Dual => 2,
            Self::Ipv4 | Self::Ipv6 => 1,
        }
    }

    const fn networks(self) -> &'static str {
        match self {
            Self::Ipv4 => r#""Network":"10.244.0.0/16""#,
            Self::Dual => {
                r#""Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56""#
            }
            Self::Ipv6 => {
                r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8:42::/56""#
            }
        }
    }
}

/// The configuration with this type of backend.
pub fn network(stack: Stack, backend: &str) -> String {
    network_with(stack, &format!(r#""Type":"{backend}""#))
}

/// The configuration with these members of `Backend`.
pub fn network_with(stack: Stack, backend: &str) -> String {
    format!(r#"{{{},"Backend":{{{backend}}}}}"#, stack.networks())
}

/// The configuration with this type of backend, and with the rules in this engine.
pub fn network_in(engine: RuleEngine, stack: Stack, backend: &str) -> String {
    let nftables = engine == RuleEngine::Nftables;
    let networks = stack.networks();
    format!(r#"{{{networks},"EnableNFTables":{nftables},"Backend":{{"Type":"{backend}"}}}}"#)
}
