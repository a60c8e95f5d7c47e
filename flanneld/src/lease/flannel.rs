//! What flannel makes of a key and its value, as simple-minded as flannel is: a single one that it
//! cannot read makes it forget all its peers, so nothing of that kind may ever be written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use regex_lite::Regex;
use serde_json::{Map, Value};

/// It looks for this wherever it stands, but the end of the key must be its end.
static SUBNET: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(\d+)\.(\d+)\.(\d+)\.(\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$").expect("it is one")
});

/// A lease as flannel sees it.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) ipv4: IpNetwork,
    pub(crate) ipv6: Option<IpNetwork>,
    pub(crate) public_ip: IpAddr,
    pub(crate) public_ipv6: Option<IpAddr>,
    pub(crate) backend_type: String,
    pub(crate) data: [Option<String>; 2],
}

/// Reads a key and its value. `None` is what makes flannel forget everybody.
pub(crate) fn read(key: &str, value: &[u8]) -> Option<Seen> {
    let found = SUBNET.captures(key)?;
    let part = |n: usize| found.get(n).map(|part| part.as_str());
    let address: Ipv4Addr =
        [1, 2, 3, 4].map(|n| part(n).unwrap_or_default()).join(".").parse().ok()?;
    let length = part(5)?.parse().ok().filter(|length| *length < 32)?;
    let ipv6 = match (part(6), part(7)) {
        (Some(address), Some(length)) => {
            let length = length.parse().ok().filter(|length| *length < 128)?;
            Some(Ipv6Network::new(address.parse().ok()?, length).ok()?)
        }
        _ => None,
    };
    let value: Map<String, Value> = serde_json::from_slice(value).ok()?;
    let field = |name: &str| {
        let mut fields = value.iter();
        fields.find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null())
    };
    let text = |name: &str| match field(name) {
        None => Some(None),
        Some((_, value)) => value.as_str().map(Some),
    };
    let public_ip = text("PublicIP")?.map_or(Ok(Ipv4Addr::UNSPECIFIED), str::parse).ok()?;
    let public_ipv6 = text("PublicIPv6")?.map(str::parse::<Ipv6Addr>).transpose().ok()?;
    Some(Seen {
        ipv4: IpNetwork::V4(Ipv4Network::new(address, length).ok()?),
        ipv6: ipv6.map(IpNetwork::V6),
        public_ip: public_ip.into(),
        public_ipv6: public_ipv6.map(IpAddr::V6),
        backend_type: text("BackendType")?.unwrap_or_default().to_owned(),
        data: ["BackendData", "BackendV6Data"].map(|name| Some(field(name)?.1.to_string())),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use fabric::mac::MacAddr;
    use fabric::mtu::Mtu;

    use super::*;
    use crate::backend;
    use crate::config::NetworkConfig;
    use crate::external_interface::{ExternalInterface, NodeAddress};
    use crate::family::{Family, PerFamily};
    use crate::lease::{Attributes, LeaseKey, wire};

    const NETWORKS: [(&str, usize); 8] = [
        (r#""Network":"10.3.0.0/16""#, 255),
        (r#""Network":"10.0.0.0/8","SubnetLen":20"#, 4095),
        (r#""Network":"10.0.0.0/8","SubnetLen":30"#, 5000),
        (r#""Network":"10.1.2.0/23","SubnetLen":25"#, 3),
        (r#""Network":"10.1.2.0/28""#, 3),
        (r#""Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48""#, 255),
        (r#""Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8::/100""#, 3),
        (r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48""#, 5000),
    ];
    const BACKENDS: [&str; 3] = ["vxlan", "host-gw", "udp"];

    /// Every key that a node can take in this network; those of a large one up to a number.
    fn keys(config: &NetworkConfig) -> Vec<LeaseKey> {
        let subnets = |family| config.pools.get(family).map(|pool| pool.subnets().take(5000));
        let mut subnets = PerFamily::from_fn(subnets);
        let next = |subnets: &mut PerFamily<_>| {
            let one = |subnets: &mut Option<_>| subnets.as_mut().map(Iterator::next);
            let (ipv4, ipv6) = (one(&mut subnets.ipv4), one(&mut subnets.ipv6));
            if ipv4 == Some(None) || ipv6 == Some(None) {
                return None;
            }
            LeaseKey::new(PerFamily { ipv4: ipv4.flatten(), ipv6: ipv6.flatten() })
        };
        std::iter::from_fn(|| next(&mut subnets)).collect()
    }

    /// What a node of each backend says, and what a reservation does.
    pub(crate) fn attributes(config: &NetworkConfig) -> Vec<Attributes> {
        let address = |family| match family {
            Family::V4 => "198.51.100.1",
            Family::V6 => "fd99::1",
        };
        let addresses = PerFamily::from_fn(|family| {
            let ip = address(family).parse().unwrap();
            config.pools.get(family).map(|_| NodeAddress { ip, public_ip: ip })
        });
        let interface = ExternalInterface {
            name: "eth0".parse().unwrap(),
            mtu: Mtu::new(1500).unwrap(),
            addresses,
            on_link: crate::on_link::OnLink::default(),
        };
        let networks = PerFamily::from_fn(|family| Some(config.pools.get(family)?.network));
        let of = |backend: &str| {
            let mut config = config.backend.clone();
            config.kind = backend.to_owned();
            let mac = |_, _| MacAddr([2, 0, 0, 0, 0, 1]);
            Some(
                backend::configure(&config, &networks, &interface, mac)
                    .ok()?
                    .attributes(&interface),
            )
        };
        let published: Vec<_> = BACKENDS.into_iter().filter_map(of).collect();
        let reserved = Attributes {
            backend_type: String::new(),
            backend_data: None,
            backend_v6_data: None,
            ..published[0].clone()
        };
        published.into_iter().chain([reserved]).collect()
    }

    #[test]
    fn every_key_and_value_that_can_be_written_is_read_by_flannel_as_it_is_meant() {
        let mut values = std::collections::BTreeSet::new();
        for (network, count) in NETWORKS {
            let json = format!(r#"{{{network},"Backend":{{"Type":"vxlan"}}}}"#);
            let config = NetworkConfig::parse(json.as_bytes()).unwrap();
            let keys = keys(&config);
            assert_eq!(keys.len(), count, "{json}");
            for attributes in attributes(&config) {
                let value = wire::encode(&attributes);
                values.insert(String::from_utf8(value.clone()).unwrap());
                for key in &keys {
                    let stored = format!("/coreos.com/network/subnets/{key}");
                    let seen = read(&stored, &value).unwrap_or_else(|| panic!("{stored}"));
                    assert_eq!((Some(seen.ipv4), seen.ipv6), as_meant(*key), "{stored}");
                    assert_eq!(seen.public_ip, attributes.public_ip);
                    assert_eq!(seen.public_ipv6, attributes.public_ipv6.map(IpAddr::V6));
                    assert_eq!(seen.backend_type, attributes.backend_type);
                    let data = Family::ALL.map(|family| attributes.data(family));
                    assert_eq!(seen.data, data.map(|data| data.map(ToString::to_string)));
                }
            }
        }
        assert_eq!(values.into_iter().collect::<Vec<_>>(), VALUES);
    }

    /// Without IPv4, flannel itself writes the empty network; where there is IPv4, nobody does.
    fn as_meant(key: LeaseKey) -> (Option<IpNetwork>, Option<IpNetwork>) {
        let nothing = "0.0.0.0/0".parse().unwrap();
        (key.subnet(Family::V4).or(Some(nothing)), key.subnet(Family::V6))
    }

    /// Every value, but for the addresses.
    const VALUES: [&str; 11] = [
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1","BackendType":"host-gw"}"#,
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#,
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1","BackendV6Data":{"Port":8285}}"#,
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1"}"#,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":"fd99::1","BackendType":"host-gw"}"#,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":"fd99::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":"fd99::1","BackendV6Data":{"Port":8285}}"#,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":"fd99::1"}"#,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":null}"#,
    ];

    #[test]
    fn what_makes_flannel_forget_everybody_is_recognised() {
        let lease = br#"{"PublicIP":"192.168.0.3","PublicIPv6":null}"#;
        assert!(read("/coreos.com/network/subnets/10.3.5.0-24", lease).is_some());
        for key in [
            "lock",
            "10.3.5.0-24/x",
            "10.3.5.300-24",
            "10.3.5.0-32",
            "10.3.5.0-24&::ffff:1.2.3.4-120",
        ] {
            assert_eq!(read(&format!("/coreos.com/network/subnets/{key}"), lease), None, "{key}");
        }
        for value in ["", "x", "null", r#"{"PublicIP":"node-3"}"#, r#"{"PublicIP":192}"#] {
            assert_eq!(
                read("/coreos.com/network/subnets/10.3.5.0-24", value.as_bytes()),
                None,
                "{value}"
            );
        }
    }
}
