//! Everything that reads foreign bytes, fed with bytes of every kind: nothing may panic, and what
//! is accepted must mean the same when it is written again.
//!
//! Each public function takes any bytes and panics if they break something. Fuzzing calls them
//! (`make fuzz`), and so do the property tests below; `PROPTEST_CASES=1000000` goes on longer.

use crate::cli;
use crate::config::NetworkConfig;
use crate::family::{Family, PerFamily};
use crate::lease::{LeaseKey, flannel, wire};

/// The last part of a key in the store.
///
/// # Panics
/// If a key is accepted that reads differently when it is written.
pub fn lease_key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(key) = LeaseKey::parse(text) {
        assert_eq!(LeaseKey::parse(&key.to_string()), Some(key), "{text:?}");
        assert!(key.ipv4().is_none_or(|ipv4| ipv4.prefix() <= 31), "{text:?}");
        assert!(key.ipv6().is_none_or(|ipv6| ipv6.prefix() <= 127), "{text:?}");
    }
}

/// The value of a lease.
///
/// # Panics
/// If a value is accepted that reads differently when it is written.
pub fn lease_json(bytes: &[u8]) {
    if let Ok(attributes) = wire::decode(bytes) {
        let written = wire::encode(&attributes);
        let read = wire::decode(&written).expect("what was written can be read");
        assert_eq!(read, attributes);
        assert_eq!(wire::encode(&read), written);
    }
}

/// A network configuration.
///
/// # Panics
/// If one is accepted that lists subnets which it does not offer, or which flannel cannot read.
pub fn net_conf(bytes: &[u8]) {
    let Ok(config) = NetworkConfig::parse(bytes) else { return };
    for pool in config.pools.values() {
        for subnet in pool.subnets().take(1000) {
            assert!(pool.offers(subnet), "{pool:?}");
            let key = LeaseKey::new(PerFamily::from_fn(|family| {
                Some(subnet).filter(|subnet| Family::of_network(*subnet) == family)
            }));
            let key = key.expect("there is a subnet").to_string();
            assert!(flannel::read(&key, b"{}").is_some(), "{key} is not for flannel's eyes");
        }
    }
}

/// A command line and an environment, one word a line; `NAME=value` is a variable.
///
/// # Panics
/// If parsing does.
pub fn command_line(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (variables, words): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| line.starts_with("FLANNELD_"));
    let environment = |name: &str| {
        let mut pairs = variables.iter().filter_map(|line| line.split_once('='));
        pairs.find(|(variable, _)| *variable == name).map(|(_, value)| value.to_owned())
    };
    let _refused = cli::parse(words.into_iter().map(str::to_owned), environment);
}

/// What the TUN device hands out, or a peer sends behind ten bytes.
///
/// # Panics
/// If cutting, merging or answering does, or makes something that is no packet.
pub fn tunnel_packet(bytes: &[u8]) {
    crate::backend::udp::foreign::cut_and_merge(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text that is nearly right, because noise alone never gets past the first check.
    fn nearly(alphabet: &'static str) -> impl Strategy<Value = String> {
        let words: Vec<_> = alphabet.split(' ').collect();
        let word = prop_oneof![
            3 => proptest::sample::select(words).prop_map(str::to_owned),
            1 => ".{0,3}",
        ];
        proptest::collection::vec(word, 0..24).prop_map(|words| words.concat())
    }

    fn nearly_bytes(alphabet: &'static str) -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            nearly(alphabet).prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..64),
        ]
    }

    /// A header, and a packet of TCP or UDP whose length is right.
    fn packet_bytes() -> impl Strategy<Value = Vec<u8>> {
        let noise = proptest::collection::vec(any::<u8>(), 50..400);
        (noise, any::<bool>(), any::<bool>(), 1_u8..100).prop_map(|(mut bytes, v6, udp, size)| {
            let len = bytes.len() - 10;
            let len = u16::try_from(if v6 { len - 40 } else { len }).unwrap().to_be_bytes();
            let protocol = if udp { 17 } else { 6 };
            let (first, len_at, protocol_at) = if v6 { (0x60, 14, 16) } else { (0x45, 12, 19) };
            bytes[1] = if udp { 5 } else { 1 + 3 * u8::from(v6) };
            bytes[4..6].copy_from_slice(&u16::from(size).to_ne_bytes());
            (bytes[10], bytes[protocol_at]) = (first, protocol);
            bytes[len_at..len_at + 2].copy_from_slice(&len);
            bytes
        })
    }

    const KEY: &str =
        "10.5.52.0 0.0.0.0 - & 24 31 32 0 fd00:: 2001:cafe:42:8:: ::1 -64 -127 . : ff FF";
    const JSON: &str = r#"{ } [ ] , : "PublicIP" "publicip" "PublicIPv6" "BackendType" "BackendData"
"VtepMAC" "Network" "IPv6Network" "EnableIPv6" "SubnetLen" "SubnetMin" "SubnetMax" "Backend" "Type"
"vxlan" "10.3.0.0/16" "10.3.1.0" "fc00::/48" "192.168.0.3" null true false 24 -1 1e9 0.5 \u0000"#;
    const FLAGS: &str = "--iface -iface= --v -v=1 --v=x --ip-masq --ip-masq=false \
        --etcd-endpoints= --healthz-port= 8080 70000 -- - --help --public-ip= 10.0.0.1 fd00::1 \
        lease list show reserve --json 10.3.5.0/24 --subnet-lease-renew-margin= 0x10 0 1439 \
        --etcd-password=x \n \n \n FLANNELD_IFACE= FLANNELD_V= FLANNELD_IP_MASQ= FLANNELD_";

    proptest! {
        #[test]
        fn keys(bytes in nearly_bytes(KEY)) {
            lease_key(&bytes);
        }

        #[test]
        fn values(bytes in nearly_bytes(JSON)) {
            lease_json(&bytes);
        }

        #[test]
        fn network_configurations(bytes in nearly_bytes(JSON)) {
            net_conf(&bytes);
        }

        #[test]
        fn network_configurations_that_are_nearly_valid(
            network in any::<u32>(), prefix in 8_u8..29, len in 0_u32..33,
        ) {
            let network = std::net::Ipv4Addr::from(network);
            let json = format!(
                r#"{{"Network":"{network}/{prefix}","SubnetLen":{len},"Backend":{{"Type":"vxlan"}}}}"#
            );
            net_conf(json.as_bytes());
        }

        #[test]
        fn packets(bytes in packet_bytes()) {
            tunnel_packet(&bytes);
        }

        #[test]
        fn command_lines_and_environments(bytes in nearly_bytes(FLAGS)) {
            command_line(&bytes);
        }
    }
}
