//! Everything that reads foreign bytes, fed with bytes of every kind: nothing may panic, and what
//! is accepted must mean the same when it is written again. `PROPTEST_CASES=1000000` goes on longer.

use proptest::prelude::*;

use crate::cli;
use crate::config::NetworkConfig;
use crate::lease::{LeaseKey, wire};

/// Text that is nearly right, because noise alone never gets past the first check.
fn nearly(alphabet: &'static str) -> impl Strategy<Value = String> {
    let words: Vec<_> = alphabet.split(' ').collect();
    let word =
        prop_oneof![3 => proptest::sample::select(words).prop_map(str::to_owned), 1 => ".{0,3}"];
    proptest::collection::vec(word, 0..24).prop_map(|words| words.concat())
}

const KEY: &str = "10.5.52.0 0.0.0.0 - & 24 31 32 0 fd00:: 2001:cafe:42:8:: ::1 -64 -127 . : ff FF";
const JSON: &str = r#"{ } [ ] , : "PublicIP" "publicip" "PublicIPv6" "BackendType" "BackendData"
"VtepMAC" "Network" "IPv6Network" "EnableIPv6" "SubnetLen" "SubnetMin" "SubnetMax" "Backend" "Type"
"vxlan" "10.3.0.0/16" "10.3.1.0" "fc00::/48" "192.168.0.3" null true false 24 -1 1e9 0.5 \u0000"#;
const FLAGS: &str = "--iface -iface= --v -v=1 --v=x --ip-masq --ip-masq=false --etcd-endpoints= \
    --healthz-port= 8080 70000 -- - --help --public-ip= 10.0.0.1 fd00::1 lease list show reserve \
    --json 10.3.5.0/24 --subnet-lease-renew-margin= 0x10 0 1439 --etcd-password=x";

proptest! {
    #[test]
    fn keys(text in prop_oneof![nearly(KEY), any::<String>()]) {
        if let Some(key) = LeaseKey::parse(&text) {
            prop_assert_eq!(LeaseKey::parse(&key.to_string()), Some(key));
            prop_assert!(key.subnets().all(|subnet| subnet.prefix() <= 127));
        }
    }

    #[test]
    fn values(bytes in prop_oneof![
        nearly(JSON).prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..64),
    ]) {
        if let Ok(attributes) = wire::decode(&bytes) {
            prop_assert_eq!(wire::decode(&wire::encode(&attributes)).unwrap(), attributes);
        }
    }

    #[test]
    fn network_configurations(bytes in prop_oneof![
        nearly(JSON).prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..64),
    ]) {
        let _refused = NetworkConfig::parse(&bytes);
    }

    #[test]
    fn every_valid_configuration_offers_what_it_lists(
        network in any::<u32>(), prefix in 8_u8..29, len in 0_u32..33,
    ) {
        let network = std::net::Ipv4Addr::from(network);
        let json = format!(
            r#"{{"Network":"{network}/{prefix}","SubnetLen":{len},"Backend":{{"Type":"vxlan"}}}}"#
        );
        if let Ok(config) = NetworkConfig::parse(json.as_bytes()) {
            let pool = config.pools.ipv4.unwrap();
            let mut subnets = pool.subnets().take(1000);
            prop_assert!(subnets.all(|subnet| pool.offers(subnet)), "{}", json);
        }
    }

    #[test]
    fn command_lines_and_environments(
        words in proptest::collection::vec(nearly(FLAGS), 0..6), value in nearly(FLAGS),
    ) {
        let _refused = cli::parse(words, |_| Some(value.clone()));
    }
}
