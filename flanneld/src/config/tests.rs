//! Defaults and errors of the network configuration.

use super::*;

fn parse(json: &str) -> Result<NetworkConfig, ConfigError> {
    NetworkConfig::parse(json.as_bytes())
}

fn ipv4(json: &str) -> Pool {
    parse(json).unwrap().pools.ipv4.unwrap()
}

#[test]
fn subnets_are_derived_from_the_network() {
    for (json, len, min, max) in [
        (r#"{"Network":"10.3.0.0/16"}"#, 24, "10.3.1.0", "10.3.255.0"),
        (r#"{"Network":"10.0.0.0/8","SubnetLen":20}"#, 20, "10.0.16.0", "10.255.240.0"),
        (r#"{"Network":"10.1.2.0/23"}"#, 25, "10.1.2.128", "10.1.3.128"),
        (r#"{"Network":"10.1.2.0/28"}"#, 30, "10.1.2.4", "10.1.2.12"),
        (r#"{"Network":"10.1.2.0/22"}"#, 24, "10.1.1.0", "10.1.3.0"),
        (
            r#"{"Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"}"#,
            24,
            "10.10.0.0",
            "10.99.0.0",
        ),
    ] {
        let pool = ipv4(json);
        assert_eq!((pool.subnet_len, pool.min, pool.max), (len, ip(min), ip(max)), "{json}");
    }
}

#[test]
fn ipv6_subnets_are_derived_in_the_same_way() {
    for (network, options, len, min, max) in [
        ("fc00::/48", "", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("2001:db8:42::7/56", "", 64, "2001:db8:42:1::", "2001:db8:42:ff::"),
        ("fd00::/62", "", 64, "fd00:0:0:1::", "fd00:0:0:3::"),
        ("fd00::/63", "", 65, "fd00:0:0:0:8000::", "fd00:0:0:1:8000::"),
        ("8000::/1", r#","IPv6SubnetLen":16"#, 16, "8001::", "ffff::"),
    ] {
        let json = format!(
            r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}"{options}}}"#
        );
        let pool = parse(&json).unwrap().pools.ipv6.unwrap();
        assert_eq!((pool.subnet_len, pool.min, pool.max), (len, ip(min), ip(max)), "{json}");
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn host_bits_of_the_network_are_dropped() {
    assert_eq!(ipv4(r#"{"Network":"10.3.4.5/16"}"#).network.to_string(), "10.3.0.0/16");
}

#[test]
fn names_match_in_any_case_and_unknown_ones_are_ignored() {
    let json = r#"{"network":"10.3.0.0/16","SUBNETLEN":26,"enablenftables":true,"Fancy":1,
                   "backend":{"type":"VXLAN","vni":7}}"#;
    let config = parse(json).unwrap();
    assert_eq!(config.pools.ipv4.unwrap().subnet_len, 26);
    assert_eq!(config.enable_nftables, Some(true));
    assert_eq!(config.backend.kind, "vxlan");
}

#[test]
fn no_backend_means_udp_and_an_empty_one_is_an_error() {
    assert_eq!(parse(r#"{"Network":"10.3.0.0/16"}"#).unwrap().backend.kind, "udp");
    for json in [
        r#"{"Network":"10.3.0.0/16","Backend":{}}"#,
        r#"{"Network":"10.3.0.0/16","Backend":{"Type":""}}"#,
    ] {
        assert_eq!(parse(json), Err(ConfigError::NoBackendType), "{json}");
    }
}

#[test]
fn errors_name_the_key_the_value_and_what_is_allowed() {
    for (json, text) in [
        (r#"{}"#, "Network is missing: want the network of all pods, such as 10.244.0.0/16"),
        (
            r#"{"Network":"10.0.0.0/16","EnableIPv6":true,"IPv6Network":"::/64"}"#,
            "IPv6Network ::/64 has IPv4 addresses in the form of IPv6 in it, which no pod can have: \
             want another network, such as fc00::/48",
        ),
        (r#"{"EnableIPv4":false}"#, "neither EnableIPv4 nor EnableIPv6 is true"),
        (
            r#"{"Network":"10.0.0.0/29"}"#,
            "Network 10.0.0.0/29 is too small: at least four subnets must fit; want a prefix of at \
             most /28",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetLen":17}"#,
            "SubnetLen 17 is out of range: want 18 to 30 with 10.0.0.0/16",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetLen":31}"#,
            "SubnetLen 31 is out of range: want 18 to 30 with 10.0.0.0/16",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}"#,
            "SubnetMin 10.1.0.0 is not in 10.0.0.0/16",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMax":"10.0.9.1"}"#,
            "SubnetMax 10.0.9.1 is not the first address of a /24",
        ),
        (
            r#"{"Network":"10.0.0.0/16","EnableIPv6":true}"#,
            "IPv6Network is missing: want the network of all pods, such as fd00:10:244::/48",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
            "IPv6Network fc00::/125 is too small: at least four subnets must fit; want a prefix of \
             at most /124",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/127","IPv6SubnetLen":126}"#,
            "IPv6Network fc00::/127 is too small: at least four subnets must fit; want a prefix of \
             at most /124",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/64","IPv6SubnetLen":127}"#,
            "IPv6SubnetLen 127 is out of range: want 66 to 126 with fc00::/64",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fd00::"}"#,
            "IPv6SubnetMin fd00:: is not in fc00::/48",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMax":"fc00::1"}"#,
            "IPv6SubnetMax fc00::1 is not the first address of a /64",
        ),
    ] {
        assert_eq!(parse(json).unwrap_err().to_string(), text, "{json}");
    }
}

#[test]
fn what_does_not_decode_is_refused() {
    for json in [
        "",
        "{",
        r#"["Network"]"#,
        r#"{"Network":"10.0.0.0"}"#,
        r#"{"Network":"10.0.0.0/33"}"#,
        r#"{"Network":"10.0.0/16"}"#,
        r#"{"Network":"10.0.0.0/16"} trailing"#,
        r#"{"Network":"fc00::/48"}"#,
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"10.0.0.0/16"}"#,
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::"}"#,
        r#"{"Network":"10.0.0.0/16","SubnetLen":"24"}"#,
        r#"{"Network":"10.0.0.0/16","SubnetLen":24.5}"#,
        r#"{"Network":"10.0.0.0/16","SubnetLen":-1}"#,
        r#"{"Network":"10.0.0.0/16","Backend":{"Type":1}}"#,
        r#"{"Network":"10.0.0.0/16","Backend":"vxlan"}"#,
        r#"{"Network":"10.0.0.0/16","EnableNFTables":"yes"}"#,
    ] {
        assert!(matches!(parse(json), Err(ConfigError::Json(_))), "{json}");
    }
}

#[test]
fn a_pool_offers_its_subnets_and_no_others() {
    let pool = ipv4(r#"{"Network":"10.1.2.0/28"}"#);
    let subnets: Vec<_> = pool.subnets().map(|subnet| subnet.to_string()).collect();
    assert_eq!(subnets, ["10.1.2.4/30", "10.1.2.8/30", "10.1.2.12/30"]);
    assert!(pool.subnets().all(|subnet| pool.offers(subnet)));
    for other in ["10.1.2.0/30", "10.1.2.16/30", "10.1.2.4/29", "10.1.2.5/30", "fc00::/30"] {
        assert!(!pool.offers(other.parse().unwrap()), "{other}");
    }
}

#[test]
fn a_backwards_range_offers_nothing() {
    let json = r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.3.0"}"#;
    assert_eq!(ipv4(json).subnets().count(), 0);
}

#[test]
fn every_sample_is_valid() {
    let samples = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../config")).unwrap();
    let mut count = 0;
    for sample in samples.map(|entry| entry.unwrap().path()) {
        let name = sample.file_name().unwrap().to_str().unwrap();
        if name.starts_with("net-conf") {
            let config = NetworkConfig::parse(&std::fs::read(&sample).unwrap());
            assert!(config.is_ok(), "{}: {config:?}", sample.display());
            count += 1;
        }
    }
    assert!(count > 0, "there are no samples");
}
