//! Host ports in iptables, in the chains of the Go plugin and exactly as that one makes them, so that
//! each can check and remove what the other one made.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::packet_filter::Transport;
use fabric::packet_filter::iptables::{
    Chain, Content, IpVersion, Place, Placed, Rule, Table, TableName,
};
use ipnetwork::IpNetwork;

use super::{Conditions, Mapping, Marking, Masquerade, PortMap};
use crate::invocation::Attachment;
use crate::iptables::{comment_of, hashed, version_of};

const ALL: &str = "CNI-HOSTPORT-DNAT";
const MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";

/// More ports than this do not fit one rule (`XT_MULTI_PORTS` of the kernel).
const PORTS_MAX: usize = 15;

/// The chain of an attachment.
pub fn chain_of(attachment: &Attachment) -> String {
    hashed("CNI-DN-", attachment)
}

/// The chain that leads to those of all attachments.
pub const fn leading() -> &'static str {
    ALL
}

/// Returns what the tables hold for an attachment with these addresses.
pub fn tables(
    attachment: &Attachment,
    map: &PortMap,
    (conditions, marking): (&Conditions<String>, &Marking),
    pod: &[IpNetwork],
    link: LinkName,
) -> BTreeMap<IpVersion, Vec<Table>> {
    let of_family = |is_v4: bool| pod.iter().copied().find(|ip| ip.is_ipv4() == is_v4);
    let pods = [of_family(true), of_family(false)].into_iter().flatten();
    let tables = pods.filter_map(|pod| {
        let fits = |one: &&Mapping| one.host_ip.is_none_or(|ip| ip.is_ipv4() == pod.is_ipv4());
        let mappings: Vec<_> = map.mappings.iter().filter(fits).collect();
        if mappings.is_empty() {
            return None;
        }
        let mut nat = nat(attachment, map, conditions.of(pod.ip()));
        let rules = mappings.iter().flat_map(|one| own_rules(one, map.masquerade, marking, pod));
        nat.push(chain(&chain_of(attachment), Content::Exactly(rules.collect())));
        let masquerades = map.masquerade != Masquerade::Nobody;
        if let (true, Marking::Bit(bit)) = (masquerades, marking) {
            nat.extend(shared_marks(*bit));
        }
        let mut tables = vec![Table { name: TableName::Nat, chains: nat }];
        if masquerades && pod.is_ipv4() {
            tables.push(Table { name: TableName::Raw, chains: vec![martians(link)] });
        }
        Some((version_of(pod.ip()), tables))
    });
    tables.collect()
}

/// What leads from the kernel's chains to that of the attachment. All ports of the attachment are
/// named, those on addresses of the other family too.
fn nat(attachment: &Attachment, map: &PortMap, conditions: &[String]) -> Vec<Chain> {
    let local = || placed(&["-m", "addrtype", "--dst-type", "LOCAL", "-j", ALL], Place::Last);
    let comment = comment_of("dnat ", attachment);
    let mut jumps = Vec::new();
    for transport in [Transport::Sctp, Transport::Tcp, Transport::Udp] {
        let of_transport = map.mappings.iter().filter(|mapping| mapping.transport == transport);
        let ports: Vec<_> = of_transport.map(|mapping| mapping.host_port.to_string()).collect();
        for ports in ports.chunks(PORTS_MAX) {
            let (transport, ports) = (transport.as_str(), ports.join(","));
            let matches = ["-p", transport, "-m", "comment", "--comment", &comment];
            let ports = ["-m", "multiport", "--dports", &ports];
            let target = ["-j", &chain_of(attachment)];
            let conditions = conditions.iter().map(String::as_str);
            let words = matches.into_iter().chain(ports).chain(conditions).chain(target);
            jumps.push(Placed { rule: Rule::new(words), place: Place::Last });
        }
    }
    vec![
        chain("PREROUTING", Content::Among(vec![local()])),
        chain("OUTPUT", Content::Among(vec![local()])),
        chain(ALL, Content::Among(jumps)),
    ]
}

fn own_rules(
    mapping: &Mapping,
    masquerade: Masquerade,
    marking: &Marking,
    pod: IpNetwork,
) -> Vec<Rule> {
    let set_mark = match marking {
        Marking::Bit(_) => MARK,
        Marking::Chain(chain) => chain,
    };
    // As the Go plugin has it, all pods of the subnet count as the pod itself.
    let itself = format!("{}/{}", pod.network(), pod.prefix());
    let sources: &[Option<&str>] = match masquerade {
        Masquerade::Nobody => &[],
        Masquerade::Hairpin if pod.is_ipv4() => &[Some(&itself), Some("127.0.0.1/32")],
        Masquerade::Hairpin => &[Some(&itself)],
        Masquerade::All => &[None],
    };
    let marks = sources.iter().map(|source| {
        let source = source.iter().flat_map(|source| ["-s", source]);
        rule(source.map(str::to_owned), mapping, &["-j", set_mark])
    });
    let to = std::net::SocketAddr::new(pod.ip(), mapping.container_port).to_string();
    let translation = rule(std::iter::empty(), mapping, &["-j", "DNAT", "--to-destination", &to]);
    marks.chain([translation]).collect()
}

/// A rule about what is sent to the port of a mapping.
fn rule(source: impl Iterator<Item = String>, mapping: &Mapping, target: &[&str]) -> Rule {
    let host_ip = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    let length = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    let destination =
        host_ip.iter().flat_map(|ip| ["-d".to_owned(), format!("{ip}/{}", length(ip))]);
    let (transport, port) = (mapping.transport.as_str(), mapping.host_port.to_string());
    let port = ["-p", transport, "-m", transport, "--dport", &port].map(str::to_owned);
    let target = target.iter().map(|word| (*word).to_owned());
    Rule::new(source.chain(destination).chain(port).chain(target))
}

/// What marks packets, and what gives marked ones the node's address.
fn shared_marks(bit: u8) -> [Chain; 3] {
    let mark = format!("{:#x}/{:#x}", 1_u32 << bit, 1_u32 << bit);
    let comment = ["-m", "comment", "--comment"];
    let set = ["CNI portfwd masquerade mark", "-j", "MARK", "--set-xmark", &mark];
    let jump = ["CNI portfwd requiring masquerade", "-j", MASQUERADE];
    let marked = ["-m", "mark", "--mark", &mark, "-j", "MASQUERADE"];
    let one = |words: &[&str], place| Content::Among(vec![placed(words, place)]);
    [
        chain(MARK, one(&[&comment[..], &set].concat(), Place::Last)),
        chain(MASQUERADE, one(&marked, Place::Last)),
        chain("POSTROUTING", one(&[&comment[..], &jump].concat(), Place::First)),
    ]
}

/// Where the node's loopback addresses lead somewhere, the kernel does not keep others from using
/// them any more (`route_localnet` of its `networking/ip-sysctl`).
fn martians(link: LinkName) -> Chain {
    let drop = |option| {
        let matches = match option {
            "-s" => ["-s", "127.0.0.0/8", "-i", link.as_str()],
            _ => ["-d", "127.0.0.0/8", "-i", link.as_str()],
        };
        let target = ["-m", "comment", "--comment", "CNI portfwd martians", "-j", "DROP"];
        placed(&[&matches[..], &target].concat(), Place::Last)
    };
    chain("PREROUTING", Content::Among(vec![drop("-d"), drop("-s")]))
}

fn chain(name: &str, content: Content) -> Chain {
    Chain { name: name.to_owned(), content }
}

fn placed(words: &[&str], place: Place) -> Placed {
    Placed { rule: Rule::new(words), place }
}
