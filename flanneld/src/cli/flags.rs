//! The table of flags.

use std::fmt::Write as _;

/// A flag.
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) default: &'static str,
    group: Group,
    help: &'static str,
    /// Whether the value must not be shown.
    pub(super) secret: bool,
}

/// What values a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// May be given several times.
    Texts,
    Switch,
    Number,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Store,
    Interface,
    Node,
    Rules,
    Health,
    Log,
}

impl Group {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Store, "Where leases are kept"),
        (Self::Interface, "The interface between nodes"),
        (Self::Node, "This node"),
        (Self::Rules, "Packet filter rules"),
        (Self::Health, "Health server"),
        (Self::Log, "Messages"),
    ];
}

impl Kind {
    pub(super) fn check(self, value: &str) -> Result<(), String> {
        match self {
            Self::Text | Self::Texts => Ok(()),
            Self::Switch => parse_switch(value).map(|_| ()).ok_or("want true or false".to_owned()),
            Self::Number => parse_number(value).map(|_| ()).ok_or("want a whole number".to_owned()),
        }
    }
}

/// As Go's `strconv.ParseBool`.
pub(super) fn parse_switch(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// As Go's `strconv.ParseInt` with base 0: `60`, `0x3c`, `0o74`, `074`, `0b111100`, `1_000`.
pub(super) fn parse_number(value: &str) -> Option<i64> {
    let (sign, digits) = match value.as_bytes().first()? {
        b'-' => ("-", &value[1..]),
        b'+' => ("", &value[1..]),
        _ => ("", value),
    };
    let digits = digits.to_ascii_lowercase();
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits.as_str()),
    };
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), radix).ok()
}

/// Returns the default of a flag that is in the table.
pub(super) fn default(name: &str) -> &'static str {
    FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default)
}

/// Returns the text of `--help`.
pub(crate) fn usage() -> String {
    let mut text = "\
flanneld leases a subnet for this node's pods and keeps the kernel's routes, neighbours and
forwarding entries equal to the leases of the cluster.

Usage: flanneld [FLAGS]
       flanneld lease list | show SUBNET | release SUBNET | reserve SUBNET --public-ip IP [--json]
       flanneld cleanup [--dry-run] [--force]

Flags take one dash or two. Each can also be given as a variable of the environment:
--iface-regex is FLANNELD_IFACE_REGEX. What is on the command line wins.
"
    .to_owned();
    for (group, title) in Group::ALL {
        writeln!(text, "\n{title}:").expect("a string takes any text");
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            let value = match flag.kind {
                Kind::Switch => "",
                Kind::Number => " N",
                Kind::Text => " VALUE",
                Kind::Texts => " VALUE …",
            };
            let default = match flag.default {
                "" | "false" => String::new(),
                default => format!(" (default {default})"),
            };
            let name = format!("--{}{value}", flag.name);
            writeln!(text, "  {name:<38} {}{default}", flag.help).expect("a string takes any text");
        }
    }
    text
}

const fn flag(
    group: Group,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, group, help, secret: false }
}

const fn secret(flag: Flag) -> Flag {
    Flag { secret: true, ..flag }
}

use Group::{Health, Interface, Log, Node, Rules, Store};
use Kind::{Number, Switch, Text, Texts};

/// Every flag of flannel, and our own (`lease-dir`, `etcd-password-file`).
pub(super) static FLAGS: &[Flag] = &[
    flag(
        Store,
        "etcd-endpoints",
        Text,
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "etcd servers, separated by commas",
    ),
    flag(Store, "etcd-prefix", Text, "/coreos.com/network", "where in etcd the network is"),
    flag(Store, "etcd-cafile", Text, "", "file with the certificates to trust"),
    flag(Store, "etcd-certfile", Text, "", "file with the certificate of this client"),
    flag(Store, "etcd-keyfile", Text, "", "file with the key of that certificate"),
    flag(Store, "etcd-username", Text, "", "etcd user"),
    secret(flag(Store, "etcd-password", Text, "", "its password; better in a file")),
    flag(
        Store,
        "etcd-password-file",
        Text,
        "",
        "file with its password; read again for every connection",
    ),
    flag(Store, "lease-dir", Text, "", "keep leases in this directory, and use no server"),
    flag(
        Store,
        "net-config-path",
        Text,
        "/etc/kube-flannel/net-conf.json",
        "network configuration, where the store has none",
    ),
    flag(Store, "kube-subnet-mgr", Switch, "false", "use the Kubernetes API: subnets are podCIDRs"),
    flag(Store, "kube-api-url", Text, "", "API server; not needed in a pod"),
    flag(Store, "kubeconfig-file", Text, "", "kubeconfig file; not needed in a pod"),
    flag(
        Store,
        "kube-annotation-prefix",
        Text,
        "flannel.alpha.coreos.com",
        "what the annotations of nodes begin with",
    ),
    flag(
        Store,
        "set-node-network-unavailable",
        Switch,
        "true",
        "set the node condition NetworkUnavailable to False when the network is there",
    ),
    flag(Interface, "iface", Texts, "", "name or address of the interface; the first that fits"),
    flag(Interface, "iface-regex", Texts, "", "pattern for its address or name"),
    flag(Interface, "iface-can-reach", Text, "", "the interface towards this address"),
    flag(Interface, "public-ip", Text, "", "IPv4 address that other nodes send to"),
    flag(Interface, "public-ipv6", Text, "", "IPv6 address that other nodes send to"),
    flag(
        Node,
        "subnet-file",
        Text,
        "/run/flannel/subnet.env",
        "where the CNI plugin reads the node's subnet",
    ),
    flag(
        Node,
        "cni-conf-install",
        Text,
        "",
        "where to put the CNI configuration as soon as pods can be started",
    ),
    flag(
        Node,
        "cni-conf",
        Text,
        "/etc/kube-flannel/cni-conf.json",
        "the CNI configuration to put there",
    ),
    flag(
        Node,
        "subnet-lease-renew-margin",
        Number,
        "60",
        "renew the lease this many minutes before it ends, 1 to 1439",
    ),
    flag(
        Node,
        "ip-blackhole-route",
        Switch,
        "false",
        "drop what is sent to pods of this node that are not there",
    ),
    flag(Rules, "ip-masq", Switch, "false", "masquerade what pods send out of the cluster"),
    flag(Rules, "ip-masq-except", Texts, "", "do not masquerade what pods send to this network"),
    flag(Rules, "ip-masq-ipv4", Switch, "true", "--ip-masq is for IPv4"),
    flag(Rules, "ip-masq-ipv6", Switch, "true", "--ip-masq is for IPv6"),
    flag(
        Rules,
        "ip-masq-fully-random-disable",
        Switch,
        "false",
        "let masquerading keep source ports where it can",
    ),
    flag(Rules, "iptables-forward-rules", Switch, "true", "accept forwarding from and to pods"),
    flag(
        Rules,
        "iptables-resync",
        Number,
        "5",
        "compare rules this often, in seconds, where the kernel does not tell of changes",
    ),
    flag(Health, "healthz-ip", Text, "0.0.0.0", "address to answer on"),
    flag(Health, "healthz-port", Number, "0", "port to answer on; 0 for none"),
    flag(Log, "v", Number, "0", "how much to tell: 0, from 2 on what is done, from 4 on all"),
    flag(Log, "vmodule", Text, "", "accepted for compatibility"),
    flag(Log, "log_backtrace_at", Text, "", "accepted for compatibility"),
    flag(Log, "version", Switch, "false", "print the version"),
];
