//! Which of the notifications about nf_tables may concern the rules of the node.
//!
//! Others, kube-proxy above all, change theirs all the time, and with iptables a comparison costs the
//! run of a program.

use rtnetlink::packet_core::{NLMSG_ALIGNTO, NetlinkBuffer, NlasIterator};

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h: the upper byte of the message type.
const NFTABLES: u16 = 10;
/// Bytes of `struct nfgenmsg`, which precedes all attributes.
const NFGENMSG: usize = 4;
// linux/netfilter/nf_tables.h
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_DELTABLE: u16 = 2;
/// The name of the table, in messages about tables, chains, rules, sets and objects alike.
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;

/// Tables that are ours as a whole start with this, and chains of ours in those of iptables too.
const OWN_TABLE: &[u8] = b"flannel-";
const OWN_CHAIN: &[u8] = b"FLANNEL-";
/// The chains of iptables that have a jump of ours.
const SHARED_CHAINS: [&[u8]; 3] = [b"FORWARD", b"POSTROUTING", b"OUTPUT"];

/// Tells whether one of the messages of a datagram may be about our rules; an empty one stands for
/// messages that were lost.
pub(crate) fn may_concern(mut datagram: &[u8]) -> bool {
    if datagram.is_empty() {
        return true;
    }
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        let kind = message.message_type();
        if kind >> 8 == NFTABLES && is_ours(kind & 0xff, message.payload()) {
            return true;
        }
        let length = (message.length() as usize).next_multiple_of(NLMSG_ALIGNTO.into());
        datagram = datagram.get(length..).unwrap_or_default();
    }
    false
}

fn is_ours(kind: u16, payload: &[u8]) -> bool {
    let attribute = |wanted| {
        NlasIterator::new(payload.get(NFGENMSG..).unwrap_or_default())
            .flatten()
            .find(|attribute| attribute.kind() == wanted)
            .map(|attribute| attribute.value().strip_suffix(b"\0").unwrap_or_default().to_vec())
    };
    let chain = match kind {
        // Who deletes a table does not say what was in it.
        NFT_MSG_DELTABLE => return true,
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => attribute(NFTA_CHAIN_NAME),
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => attribute(NFTA_RULE_CHAIN),
        _ => None,
    };
    attribute(NFTA_TABLE).is_some_and(|table| table.starts_with(OWN_TABLE))
        || chain.is_some_and(|chain| {
            chain.starts_with(OWN_CHAIN) || SHARED_CHAINS.contains(&chain.as_slice())
        })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use flannel_tests::program;
    use flannel_tests::sandbox::sandboxed;
    use rtnetlink::sys::protocols::NETLINK_NETFILTER;
    use rtnetlink::sys::{Socket, SocketAddr};

    use super::*;

    /// Whether the kernel's notifications about this command include one that may concern us.
    fn concerns_us(socket: &Socket, command: &str) -> bool {
        let (program, arguments) = command.split_once(' ').unwrap();
        program::run(Command::new(program).args(arguments.split(' ')));
        let mut concerns = false;
        let mut datagram = Vec::with_capacity(1 << 15);
        while socket.recv(&mut datagram, libc::MSG_DONTWAIT).is_ok() {
            concerns |= may_concern(&datagram);
            datagram.clear();
        }
        concerns
    }

    #[test]
    fn only_what_may_have_touched_our_rules_counts() {
        let steps = [
            ("iptables-nft -t nat -N FLANNEL-POSTRTG", true),
            ("iptables-nft -t nat -N KUBE-SERVICES", false),
            ("iptables-nft -t nat -A KUBE-SERVICES -j RETURN", false),
            ("iptables-nft -t nat -A POSTROUTING -j KUBE-SERVICES", true),
            ("iptables-nft -t nat -A FLANNEL-POSTRTG -j RETURN", true),
            ("iptables-nft -t nat -F FLANNEL-POSTRTG", true),
            ("iptables-nft -t nat -F KUBE-SERVICES", false),
            ("iptables-nft -P FORWARD DROP", true),
            ("nft add table ip other", false),
            ("nft add chain ip other forward", false),
            ("nft add table ip flannel-ipv4", true),
            ("nft add set ip flannel-ipv4 s { type ipv4_addr; }", true),
            ("nft add set ip other s { type ipv4_addr; }", false),
            ("nft flush ruleset", true),
        ];
        sandboxed(move || {
            let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
            socket.bind(&SocketAddr::new(0, 0)).unwrap();
            socket.add_membership(7).unwrap();
            for (command, expected) in steps {
                assert_eq!(concerns_us(&socket, command), expected, "{command}");
            }
        });
        assert!(may_concern(&[]));
        assert!(!may_concern(&[1; 40]));
    }
}
