//! What a node's network consists of, as text that can be compared: what flanneld made, and what it
//! must not touch.

use std::collections::BTreeSet;
use std::fs;

use crate::node::Node;
use crate::program;

/// Everything that is configured in the node's network namespace, without what the kernel numbers
/// anew, counts or learns; and the subnet file.
///
/// # Errors
/// What cannot be read, because it is just being made anew.
pub fn of(node: &Node) -> Result<String, String> {
    let namespace = node.namespace();
    let links = namespace.try_ip("-oneline link show")?;
    let tunnels = namespace.try_ip("-details -oneline link show type vxlan")?;
    let addresses = namespace.try_ip("-oneline address show scope global")?;
    if let Some(line) = addresses.lines().find(|line| line.contains(" tentative")) {
        return Err(format!("not yet found to be unique: {line}"));
    }
    let mut fdb = String::new();
    for link in tunnels.lines() {
        let name = without_index(link).split([':', '@']).next().unwrap_or_default();
        fdb += &namespace.try_bridge(&format!("fdb show dev {name}"))?;
    }
    let rules = program::outcome(namespace.command("nft").args(["--stateless", "list", "ruleset"]));
    let parts = [
        sorted(links.lines().map(without_index)),
        sorted(tunnels.lines().map(without_index)),
        sorted(addresses.lines().map(without_index)),
        sorted(namespace.try_ip("-4 route show table all")?.lines()),
        sorted(configured(&namespace.try_ip("-6 route show table all")?)),
        sorted(namespace.try_ip("neighbour show nud permanent")?.lines()),
        sorted(fdb.lines()),
        String::from_utf8_lossy(&rules.stdout).into_owned(),
        parameters(node),
        node.subnet_file().unwrap_or_default(),
    ];
    Ok(parts.join("\n"))
}

/// The lines that are in one of the texts only: `-` before, `+` after.
pub fn difference(before: &str, after: &str) -> String {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) =
        (before.lines().collect(), after.lines().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}\n"));
    gone.chain(new.difference(&old).map(|line| format!("+ {line}\n"))).collect()
}

fn without_index(line: &str) -> &str {
    line.split_once(": ").map_or(line, |(_index, rest)| rest)
}

fn sorted<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mut lines: Vec<_> = lines.map(str::trim).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// For each IPv6 address the kernel makes routes as it goes along.
fn configured(routes: &str) -> impl Iterator<Item = &str> {
    routes.lines().filter(|route| !route.contains(" proto kernel") && !route.contains(" proto ra"))
}

/// Those parameters of the tunnels that flanneld sets.
fn parameters(node: &Node) -> String {
    let value = |parameter| {
        let path = format!("/proc/sys/net/{parameter}");
        fs::read_to_string(&path).map_or_else(|_| String::new(), |value| format!("{path} {value}"))
    };
    let parameters = [
        "ipv6/conf/flannel.1/accept_ra",
        "ipv6/conf/flannel-v6.1/accept_ra",
        "ipv4/conf/flannel0/accept_local",
    ];
    node.namespace().inside(move || parameters.map(value).concat())
}
