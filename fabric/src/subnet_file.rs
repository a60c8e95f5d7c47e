//! `/run/flannel/subnet.env`: what the agent tells the CNI plugin about this node.
//!
//! The agent writes the file when the node's lease is held and its data plane stands; a plugin that
//! finds it may attach pods. Lines are `KEY=value` without quotes or comments, and shell scripts
//! read them too, so they are written byte for byte as flannel does.

pub mod atomic;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// What the agent leased and decided for this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetFile {
    /// The cluster's IPv4 networks, without host bits.
    pub networks4: Vec<Ipv4Network>,
    /// The node's IPv4 subnet, without host bits. The file shows its first address, the gateway's.
    pub subnet4: Option<Ipv4Network>,
    /// The cluster's IPv6 networks, without host bits.
    pub networks6: Vec<Ipv6Network>,
    /// The node's IPv6 subnet, without host bits.
    pub subnet6: Option<Ipv6Network>,
    /// The largest packet of a pod, in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades what leaves the cluster, so that the plugin need not.
    pub ip_masq: bool,
}

impl SubnetFile {
    /// Returns what the file says about a node with these subnets.
    pub fn new(
        networks: impl IntoIterator<Item = IpNetwork>,
        subnets: impl IntoIterator<Item = IpNetwork>,
        mtu: u32,
        ip_masq: bool,
    ) -> Self {
        let mut file = Self { mtu, ip_masq, ..Self::default() };
        for network in networks {
            match network {
                IpNetwork::V4(network) => file.networks4.push(network),
                IpNetwork::V6(network) => file.networks6.push(network),
            }
        }
        for subnet in subnets {
            match subnet {
                IpNetwork::V4(subnet) => file.subnet4 = Some(subnet),
                IpNetwork::V6(subnet) => file.subnet6 = Some(subnet),
            }
        }
        file
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, or is not what an agent writes.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|content| ReadError::Content { path: path.to_owned(), content })
    }

    /// Makes this the content of the file at `path`, in one step for whoever reads it.
    ///
    /// The directory is made if it is missing; the file is readable by everybody.
    ///
    /// # Errors
    /// If the file system refuses; what was at `path` is then still there.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        atomic::create_parent(path, 0o755)?;
        atomic::replace(path, self.render().as_bytes(), 0o644)
    }

    /// Returns the content of the file.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: String| {
            text.push_str(key);
            text.push('=');
            text.push_str(&value);
            text.push('\n');
        };
        if !self.networks4.is_empty() {
            line(NETWORK4, join(&self.networks4));
        }
        if let Some(subnet) = self.subnet4 {
            let first = Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1));
            line(SUBNET4, format!("{first}/{}", subnet.prefix()));
        }
        if !self.networks6.is_empty() {
            line(NETWORK6, join(&self.networks6));
        }
        if let Some(subnet) = self.subnet6 {
            let first = Ipv6Addr::from(u128::from(subnet.network()).saturating_add(1));
            line(SUBNET6, format!("{first}/{}", subnet.prefix()));
        }
        line(MTU, self.mtu.to_string());
        line(IP_MASQ, self.ip_masq.to_string());
        text
    }

    /// Parses the content of the file. The last line for a key counts, unknown keys are ignored.
    ///
    /// # Errors
    /// If a value cannot be understood, or if a line is missing that every such file has.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut file = Self::default();
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            let (name, value) = line.split_once('=').map_or((line, None), |(k, v)| (k, Some(v)));
            let Some(&key) = KEYS.iter().find(|key| **key == name) else { continue };
            file.set(key, value.ok_or(ParseError::NoValue(key))?)?;
            seen.insert(key);
        }
        let missing = missing_keys(|key| seen.contains(key));
        if missing.is_empty() { Ok(file) } else { Err(ParseError::Missing(missing)) }
    }

    /// Returns the cluster's networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        let v4 = self.networks4.iter().copied().map(IpNetwork::from);
        v4.chain(self.networks6.iter().copied().map(IpNetwork::from))
    }

    /// Returns the node's subnets, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let v4 = self.subnet4.map(IpNetwork::from);
        v4.into_iter().chain(self.subnet6.map(IpNetwork::from))
    }

    fn set(&mut self, key: &'static str, value: &str) -> Result<(), ParseError> {
        match key {
            NETWORK4 => self.networks4 = networks(key, value, only_v4)?,
            NETWORK6 => self.networks6 = networks(key, value, only_v6)?,
            SUBNET4 => self.subnet4 = Some(network(key, value, only_v4)?),
            SUBNET6 => self.subnet6 = Some(network(key, value, only_v6)?),
            MTU => {
                let mtu = is_decimal(value).then(|| value.parse().ok()).flatten();
                self.mtu = mtu.ok_or_else(|| ParseError::Mtu(value.to_owned()))?;
            }
            _ => self.ip_masq = value == "true",
        }
        Ok(())
    }
}

/// Why there is no [`SubnetFile`] to be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is not there or not readable.
    #[error("open {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what an agent writes.
    #[error("{} {content}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as the rest of a sentence that begins with the path.
        content: ParseError,
    },
}

/// What is wrong with the content of a subnet file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Lines that every such file has are not there.
    #[error("is missing {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A line has a key only.
    #[error("has no value for {0}")]
    NoValue(&'static str),
    /// A network is not an address, a slash and a prefix length.
    #[error("has an invalid CIDR address: {value} in {key}")]
    Cidr {
        /// The key of the line.
        key: &'static str,
        /// The part of the line that is wrong.
        value: String,
    },
    /// A network is not of the family that its key says.
    #[error("has an address of the wrong family: {value} in {key}")]
    Family {
        /// The key of the line.
        key: &'static str,
        /// The part of the line that is wrong.
        value: IpNetwork,
    },
    /// The MTU is not a number of 32 bits.
    #[error("has an invalid number: {0} in {MTU}")]
    Mtu(String),
}

const NETWORK4: &str = "FLANNEL_NETWORK";
const NETWORK6: &str = "FLANNEL_IPV6_NETWORK";
const SUBNET4: &str = "FLANNEL_SUBNET";
const SUBNET6: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IP_MASQ: &str = "FLANNEL_IPMASQ";
const KEYS: [&str; 6] = [NETWORK4, NETWORK6, SUBNET4, SUBNET6, MTU, IP_MASQ];

/// Of a network and a subnet, one family is enough.
fn missing_keys(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let groups: [&[&str]; 4] = [&[NETWORK4, NETWORK6], &[SUBNET4, SUBNET6], &[MTU], &[IP_MASQ]];
    let absent = groups.into_iter().filter(|group| !group.iter().any(|key| has(key)));
    absent.flatten().copied().collect()
}

fn networks<N: PartialEq>(
    key: &'static str,
    values: &str,
    family: fn(IpNetwork) -> Option<N>,
) -> Result<Vec<N>, ParseError> {
    let mut networks = Vec::new();
    for value in values.split(',') {
        let network = network(key, value, family)?;
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    Ok(networks)
}

fn network<N>(
    key: &'static str,
    value: &str,
    family: fn(IpNetwork) -> Option<N>,
) -> Result<N, ParseError> {
    let parsed = cidr(value).ok_or_else(|| ParseError::Cidr { key, value: value.to_owned() })?;
    family(parsed).ok_or(ParseError::Family { key, value: parsed })
}

/// Parses `ADDRESS/LENGTH` and drops the host bits. The parser of [`IpNetwork`] also takes a bare
/// address and a mask, which would hide a damaged file.
fn cidr(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let length = is_decimal(length).then(|| length.parse().ok())??;
    let network = IpNetwork::new(address.parse().ok()?, length).ok()?;
    IpNetwork::new(network.network(), length).ok()
}

/// Rust's numbers may have a sign.
fn is_decimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn only_v4(network: IpNetwork) -> Option<Ipv4Network> {
    if let IpNetwork::V4(network) = network { Some(network) } else { None }
}

fn only_v6(network: IpNetwork) -> Option<Ipv6Network> {
    if let IpNetwork::V6(network) = network { Some(network) } else { None }
}

fn join<N: ToString>(networks: &[N]) -> String {
    networks.iter().map(N::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    const V4_ONLY: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
                           FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

    fn v4_only() -> SubnetFile {
        SubnetFile {
            networks4: vec!["10.1.0.0/16".parse().unwrap()],
            subnet4: Some("10.1.17.0/24".parse().unwrap()),
            mtu: 1472,
            ip_masq: true,
            ..SubnetFile::default()
        }
    }

    fn dual_stack() -> SubnetFile {
        SubnetFile {
            networks4: vec!["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()],
            networks6: vec!["2001:cafe:42::/56".parse().unwrap()],
            subnet6: Some("2001:cafe:42:1::/64".parse().unwrap()),
            ip_masq: false,
            ..v4_only()
        }
    }

    #[test]
    fn is_written_byte_for_byte_as_flannel_does() {
        assert_eq!(v4_only().render(), V4_ONLY);
        assert_eq!(
            dual_stack().render(),
            "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\n\
             FLANNEL_SUBNET=10.1.17.1/24\n\
             FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n\
             FLANNEL_IPV6_SUBNET=2001:cafe:42:1::1/64\n\
             FLANNEL_MTU=1472\n\
             FLANNEL_IPMASQ=false\n"
        );
    }

    #[test]
    fn reading_is_lenient_where_flannel_is() {
        let table = [
            V4_ONLY.replace('\n', "\r\n"),
            V4_ONLY.trim_end().to_owned(),
            format!("# written by flanneld\n\nOTHER=1\nno equals sign\n{V4_ONLY}"),
            format!("FLANNEL_SUBNET=10.9.9.1/24\n{V4_ONLY}"),
            V4_ONLY.replace("=10.1.0.0/16", "=10.1.3.4/16,10.1.0.0/16"),
            V4_ONLY.replace("10.1.17.1/24", "10.1.17.0/24"),
        ];
        for text in table {
            assert_eq!(SubnetFile::parse(&text), Ok(v4_only()), "{text}");
        }
        let not_true = V4_ONLY.replace("true", "TRUE");
        assert!(!SubnetFile::parse(&not_true).unwrap().ip_masq);
    }

    #[test]
    fn bad_content_is_named() {
        let table = [
            ("10.1.17.1/24", "10.1.17.1", "invalid CIDR address: 10.1.17.1 in FLANNEL_SUBNET"),
            ("10.1.17.1/24", "10.1.17.1/33", "invalid CIDR address: 10.1.17.1/33"),
            ("10.1.17.1/24", "10.1.17.1/+4", "invalid CIDR address: 10.1.17.1/+4"),
            ("10.1.17.1/24", "10.1.17.1/255.255.255.0", "invalid CIDR address: 10.1.17.1/255"),
            ("10.1.17.1/24", "", "invalid CIDR address:  in FLANNEL_SUBNET"),
            ("10.1.0.0/16", "10.1.0.0/16, 10.2.0.0/16", "address:  10.2.0.0/16 in FLANNEL_NETWORK"),
            ("10.1.17.1/24", "fd00::1/64", "wrong family: fd00::/64 in FLANNEL_SUBNET"),
            ("1472", "+1472", "has an invalid number: +1472 in FLANNEL_MTU"),
            ("1472", "4294967296", "has an invalid number: 4294967296"),
            ("1472", "", "has an invalid number:  in FLANNEL_MTU"),
            ("FLANNEL_MTU=1472", "FLANNEL_MTU", "has no value for FLANNEL_MTU"),
        ];
        for (from, to, expected) in table {
            let error = SubnetFile::parse(&V4_ONLY.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    #[test]
    fn missing_lines_are_listed_in_one_order() {
        let all = "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, \
                   FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ";
        assert_eq!(SubnetFile::parse("").unwrap_err().to_string(), all);
        let table = [
            ("FLANNEL_NETWORK", "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
            ("FLANNEL_SUBNET", "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
            ("FLANNEL_MTU", "is missing FLANNEL_MTU"),
            ("FLANNEL_IPMASQ", "is missing FLANNEL_IPMASQ"),
        ];
        for (key, expected) in table {
            let text = V4_ONLY.replace(key, &format!(" {key}"));
            assert_eq!(SubnetFile::parse(&text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn errors_name_the_file() {
        let error = SubnetFile::read(Path::new("/nonexistent/subnet.env")).unwrap_err();
        assert_eq!(error.to_string(), "open /nonexistent/subnet.env");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("subnet.env");
        fs::write(&path, V4_ONLY.replace("FLANNEL_MTU", "X")).unwrap();
        let error = SubnetFile::read(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("{} is missing FLANNEL_MTU", path.display()));
    }

    #[test]
    fn is_written_whole_and_readable_by_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/flannel/subnet.env");
        for file in [v4_only(), dual_stack()] {
            file.write(&path).unwrap();
            assert_eq!(SubnetFile::read(&path).unwrap(), file);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o644);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(text in ".{0,200}") {
            let _ = SubnetFile::parse(&text);
        }

        #[test]
        fn what_was_written_is_read(base: u32, length in 1..=30_u8, mtu: u32, ip_masq: bool) {
            let network = Ipv4Network::new(base.into(), length).unwrap();
            let network = Ipv4Network::new(network.network(), length).unwrap();
            let file = SubnetFile {
                networks4: vec![network],
                subnet4: Some(network),
                mtu,
                ip_masq,
                ..SubnetFile::default()
            };
            prop_assert_eq!(SubnetFile::parse(&file.render()), Ok(file));
        }
    }
}
