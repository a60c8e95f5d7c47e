//! The engines that flanneld can put its rules into, as the administrator sees them.

use crate::cluster::STOCK_NETWORK;
use crate::namespace::Namespace;
use crate::program;

/// What evaluates the rules of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleEngine {
    /// Tables of flanneld's own.
    Nftables,
    /// iptables, with its rules in nf_tables.
    IptablesNft,
    /// iptables, with its rules in the kernel's older tables.
    IptablesLegacy,
}

impl RuleEngine {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    /// The stock network configuration for this engine.
    pub fn network(self) -> String {
        let stock = "\"EnableNFTables\": false";
        assert!(STOCK_NETWORK.contains(stock), "{STOCK_NETWORK}");
        let switch = format!("\"EnableNFTables\": {}", self == Self::Nftables);
        STOCK_NETWORK.replace(stock, &switch)
    }

    /// Makes a node one where this variant of iptables is in use, by a rule of somebody else.
    pub fn prepare(self, node: &Namespace) {
        let program = match self {
            Self::Nftables => return,
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        };
        let rule = ["-t", "mangle", "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT"];
        program::run(node.command(program).args(rule));
    }

    /// Everything of flannel that this engine holds on a node, in the engine's own words.
    pub fn listing(self, node: &Namespace) -> String {
        match self {
            Self::Nftables => own_tables(node),
            Self::IptablesNft => saved(node, "nft"),
            Self::IptablesLegacy => saved(node, "legacy"),
        }
    }
}

/// Our tables, out of one listing of all: they may be removed at any moment.
fn own_tables(node: &Namespace) -> String {
    let ruleset = program::run(node.command("nft").args(["list", "ruleset"]));
    let (mut text, mut ours) = (String::new(), false);
    for line in ruleset.lines() {
        if line.starts_with("table ") {
            ours = line.contains(" flannel-ipv");
        }
        if ours {
            text.extend([line, "\n"]);
        }
    }
    text
}

/// Chains and rules of both IP versions, without dates and without tables that flannel is not in.
fn saved(node: &Namespace, variant: &str) -> String {
    let mut text = String::new();
    for program in ["iptables", "ip6tables"] {
        let save = format!("{program}-{variant}-save");
        let saved = program::run(&mut node.command(&save));
        for table in ["filter", "nat", "raw"] {
            let start = format!("*{table}\n");
            let rules = saved.split_once(&start).map_or("", |(_, rest)| rest);
            let rules = rules.split("COMMIT").next().unwrap_or_default();
            let ours = rules.lines().filter(|line| line.contains("FLANNEL-"));
            text.extend(ours.map(|line| format!("{program} -t {table} {line}\n")));
        }
    }
    text
}
