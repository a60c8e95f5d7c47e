//! Masquerading in iptables, in a chain for each container and exactly as the Go plugins make it, so
//! that each can remove what the other one made.

use std::collections::BTreeMap;

use fabric::packet_filter::iptables::{
    Chain, Content, IpVersion, Place, Placed, Rule, Table, TableName,
};
use ipnetwork::IpNetwork;

use crate::invocation::Attachment;
use crate::iptables::{comment_of, hashed, version_of};

/// The chain of an attachment.
pub fn chain_of(attachment: &Attachment) -> String {
    hashed("CNI-", attachment)
}

/// Returns what the tables hold for an attachment with these addresses, each with the length of its
/// subnet.
pub fn tables(
    attachment: &Attachment,
    addresses: impl Iterator<Item = IpNetwork>,
) -> BTreeMap<IpVersion, Vec<Table>> {
    let mut families: BTreeMap<IpVersion, Vec<IpNetwork>> = BTreeMap::new();
    for address in addresses {
        families.entry(version_of(address.ip())).or_default().push(address);
    }
    families
        .into_iter()
        .map(|(version, ips)| (version, vec![nat(attachment, version, &ips)]))
        .collect()
}

fn nat(attachment: &Attachment, version: IpVersion, addresses: &[IpNetwork]) -> Table {
    let comment = comment_of("", attachment);
    let name = chain_of(attachment);
    let rule = |matches: &[&str], target: &str| {
        let comment = ["-m", "comment", "--comment", &comment, "-j", target];
        Rule::new([matches, &comment].concat())
    };
    let multicast = match version {
        IpVersion::V4 => "224.0.0.0/4",
        IpVersion::V6 => "ff00::/8",
    };
    let accepted = addresses.iter().map(|ip| {
        let subnet = format!("{}/{}", ip.network(), ip.prefix());
        rule(&["-d", &subnet], "ACCEPT")
    });
    let hidden = rule(&["!", "-d", multicast], "MASQUERADE");
    let jumps = addresses.iter().map(|ip| {
        let length = if ip.is_ipv4() { 32 } else { 128 };
        let rule = rule(&["-s", &format!("{}/{length}", ip.ip())], &name);
        Placed { rule, place: Place::Last }
    });
    let chains = vec![
        Chain { name: name.clone(), content: Content::Exactly(accepted.chain([hidden]).collect()) },
        Chain { name: "POSTROUTING".to_owned(), content: Content::Among(jumps.collect()) },
    ];
    Table { name: TableName::Nat, chains }
}

#[cfg(test)]
mod tests {
    use fabric::packet_filter::iptables::{Observed, diff};

    use super::*;

    #[test]
    fn the_chain_is_that_of_the_go_plugins() {
        let table = [
            ("test", "1234", "CNI-2bbe0c48b91a7d1b8a6753a8"),
            ("testalongnamethatdoesnotmakesense", "1234", "CNI-374f33fe84ab0ed84dcdebe3"),
            ("cbr0", "abc", "CNI-64e75f641d11615844d681b7"),
        ];
        for (network, container, expected) in table {
            assert_eq!(chain_of(&Attachment::named(network, container, "eth0")), expected);
        }
    }

    #[test]
    fn each_address_is_hidden_from_all_but_its_subnet() {
        let addresses = ["10.1.2.5/24", "fd00::5/64"].map(|ip| ip.parse().unwrap());
        let tables = tables(&Attachment::named("cbr0", "abc", "eth0"), addresses.into_iter());
        let v4 = "\
*nat
-N CNI-64e75f641d11615844d681b7
-A CNI-64e75f641d11615844d681b7 -d 10.1.2.0/24 -m comment --comment \"name: \\\"cbr0\\\" id: \\\"abc\\\"\" -j ACCEPT
-A CNI-64e75f641d11615844d681b7 ! -d 224.0.0.0/4 -m comment --comment \"name: \\\"cbr0\\\" id: \\\"abc\\\"\" -j MASQUERADE
-A POSTROUTING -s 10.1.2.5/32 -m comment --comment \"name: \\\"cbr0\\\" id: \\\"abc\\\"\" -j CNI-64e75f641d11615844d681b7
COMMIT
";
        assert_eq!(diff(&tables[&IpVersion::V4], &Observed::default()).to_string(), v4);
        let v6 = v4
            .replace("10.1.2.0/24", "fd00::/64")
            .replace("10.1.2.5/32", "fd00::5/128")
            .replace("224.0.0.0/4", "ff00::/8");
        assert_eq!(diff(&tables[&IpVersion::V6], &Observed::default()).to_string(), v6);
    }
}
