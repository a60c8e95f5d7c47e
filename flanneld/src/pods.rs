//! The pods of this machine, as the files of their addresses tell.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;

/// Where the address management of CNI plugins keeps one file for each address.
pub(crate) const NETWORKS: &str = "/var/lib/cni/networks";

/// Returns what has an address in `subnet`: address and container.
pub(crate) fn on(subnet: IpNetwork, networks: &Path) -> Vec<String> {
    let networks = fs::read_dir(networks).into_iter().flatten().flatten();
    let files = networks.flat_map(|network| fs::read_dir(network.path()).into_iter().flatten());
    let pod = |file: fs::DirEntry| {
        let ip: IpAddr = file.file_name().to_str()?.parse().ok()?;
        let container = fs::read_to_string(file.path()).ok()?;
        let container = container.lines().next().unwrap_or_default().to_owned();
        subnet.contains(ip).then(|| format!("{ip} of {container}"))
    };
    let mut pods: Vec<_> = files.flatten().filter_map(pod).collect();
    pods.sort();
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_the_files_of_their_addresses() {
        let networks = tempfile::tempdir().unwrap();
        let network = networks.path().join("cbr0");
        fs::create_dir(&network).unwrap();
        fs::write(network.join("10.3.5.7"), "abc\r\neth0").unwrap();
        fs::write(network.join("10.3.6.7"), "def\r\neth0").unwrap();
        fs::write(network.join("last_reserved_ip.0"), "10.3.5.7").unwrap();
        fs::write(network.join("fd00:5::7"), "abc\r\neth0").unwrap();
        let subnet = "10.3.5.0/24".parse().unwrap();
        assert_eq!(on(subnet, networks.path()), ["10.3.5.7 of abc"]);
        let subnet6 = "fd00:5::/64".parse().unwrap();
        assert_eq!(on(subnet6, networks.path()), ["fd00:5::7 of abc"]);
        assert!(on(subnet, &networks.path().join("missing")).is_empty());
    }
}
