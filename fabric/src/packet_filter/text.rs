//! Changes as the `nft` commands that would make them; see nft(8).

use std::fmt::{Display, Formatter, Result};

use ipnetwork::IpNetwork;

use super::{Change, Family, Hook, Match, Operation, Rule, TableId, Verdict};

impl Display for Change {
    /// One command per line.
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.operations.iter().try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::AddTable { table, comment: None } => write!(f, "add table {table}"),
            Self::AddTable { table, comment: Some(comment) } => {
                write!(f, "add table {table} {{ comment \"{comment}\"; }}")
            }
            Self::AddChain { table, chain, hook: None } => write!(f, "add chain {table} {chain}"),
            Self::AddChain { table, chain, hook: Some(hook) } => {
                write!(f, "add chain {table} {chain} {{ {hook} }}")
            }
            Self::AddRule { table, chain, before: None, rule } => {
                write!(f, "add rule {table} {chain} {rule}")
            }
            Self::AddRule { table, chain, before: Some(handle), rule } => {
                write!(f, "insert rule {table} {chain} handle {handle} {rule}")
            }
            Self::DeleteRule { table, chain, handle } => {
                write!(f, "delete rule {table} {chain} handle {handle}")
            }
            Self::DeleteChain { table, chain } => write!(f, "delete chain {table} {chain}"),
            Self::DeleteTable { table } => write!(f, "delete table {table}"),
        }
    }
}

impl Display for TableId {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::FilterForward => "type filter hook forward priority filter; policy accept;",
            Self::NatPostrouting => "type nat hook postrouting priority srcnat; policy accept;",
            Self::NatPrerouting => "type nat hook prerouting priority dstnat; policy accept;",
            Self::NatOutput => "type nat hook output priority -100; policy accept;",
            Self::FilterPrerouting => "type filter hook prerouting priority raw; policy accept;",
            Self::FilterOutput => "type filter hook output priority raw; policy accept;",
        })
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.matches.iter().try_for_each(|condition| write!(f, "{condition} "))?;
        write!(f, "{}", self.verdict)?;
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Source(network, equal) => address(f, "saddr", network, *equal),
            Self::Destination(network, equal) => address(f, "daddr", network, *equal),
            Self::LocalDestination => f.write_str("fib daddr type local"),
            Self::DestinationPort(transport, port) => {
                write!(f, "{} dport {port}", transport.as_str())
            }
            Self::EtherSource(mac) => write!(f, "ether saddr {mac}"),
            Self::InputInterface(link) => write!(f, "iifname \"{link}\""),
            Self::Mark(bits) => write!(f, "meta mark & {bits:#010x} == {bits:#010x}"),
        }
    }
}

/// Writes `ip saddr 10.244.0.0/16`; a network of one address goes without prefix length.
fn address(f: &mut Formatter<'_>, side: &str, network: &IpNetwork, equal: bool) -> Result {
    let (family, bits) = match network {
        IpNetwork::V4(_) => (Family::Ip, 32),
        IpNetwork::V6(_) => (Family::Ip6, 128),
    };
    let not = if equal { "" } else { "!= " };
    write!(f, "{family} {side} {not}{}", network.network())?;
    if network.prefix() == bits { Ok(()) } else { write!(f, "/{}", network.prefix()) }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Return => f.write_str("return"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Drop => f.write_str("drop"),
            Self::DestinationNat(to) => write!(f, "dnat to {to}"),
            Self::ClearMark(bits) => write!(f, "meta mark set meta mark & {:#010x}", !bits),
            Self::Masquerade { fully_random: false } => f.write_str("masquerade"),
            Self::Masquerade { fully_random: true } => f.write_str("masquerade fully-random"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet_filter::Transport;
    use crate::packet_filter::examples::{net, rule};

    #[test]
    fn rule_reads_as_nft_lists_it() {
        let random = Verdict::Masquerade { fully_random: true };
        let goto = Verdict::Goto("masq_checks".to_owned());
        let table = [
            (rule(&[], Verdict::Accept, None), "accept"),
            (rule(&[], goto, None), "goto masq_checks"),
            (rule(&[], random, Some("a b")), "masquerade fully-random comment \"a b\""),
            (
                rule(&[Match::Mark(0x4000)], Verdict::Return, None),
                "meta mark & 0x00004000 == 0x00004000 return",
            ),
            (
                rule(
                    &[Match::DestinationPort(Transport::Udp, 8472)],
                    Verdict::ClearMark(0x4000),
                    None,
                ),
                "udp dport 8472 meta mark set meta mark & 0xffffbfff",
            ),
            (
                rule(&[Match::Source(net("10.1.2.3/32"), true)], Verdict::Accept, None),
                "ip saddr 10.1.2.3 accept",
            ),
            (
                rule(&[Match::Source(net("10.1.2.3/16"), false)], Verdict::Accept, None),
                "ip saddr != 10.1.0.0/16 accept",
            ),
            (
                rule(&[Match::Destination(net("::/0"), true)], Verdict::Accept, None),
                "ip6 daddr ::/0 accept",
            ),
            (
                rule(&[Match::Destination(net("fd00::1/128"), false)], Verdict::Accept, None),
                "ip6 daddr != fd00::1 accept",
            ),
        ];
        for (rule, text) in table {
            assert_eq!(rule.to_string(), text);
        }
    }
}
