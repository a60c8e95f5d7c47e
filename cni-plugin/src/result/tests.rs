//! Results in the form of every version.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn dual_stack() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface {
                name: "cni0".to_owned(),
                mac: "0a:58:0a:01:02:01".to_owned(),
                ..Interface::default()
            },
            Interface {
                name: "eth0".to_owned(),
                mac: "0a:58:0a:01:02:05".to_owned(),
                mtu: 1450,
                sandbox: "/run/netns/x".to_owned(),
                ..Interface::default()
            },
        ],
        ips: vec![
            Ip {
                interface: Some(1),
                address: "10.1.2.5/24".parse().unwrap(),
                gateway: Some("10.1.2.1".parse().unwrap()),
            },
            Ip { interface: Some(1), address: "fd00::5/64".parse().unwrap(), gateway: None },
        ],
        routes: vec![
            Route::to("10.1.0.0/16".parse().unwrap()),
            Route {
                gw: Some("10.1.2.1".parse().unwrap()),
                mtu: 1400,
                scope: Some(0),
                ..Route::to("0.0.0.0/0".parse().unwrap())
            },
            Route::to("fd00::/48".parse().unwrap()),
        ],
        dns: Dns::default(),
    }
}

fn compact(text: &str) -> String {
    text.lines().map(str::trim_start).collect::<String>().replace("\": ", "\":")
}

const ROUTES: &str = concat!(
    r#""routes":[{"dst":"10.1.0.0/16"},"#,
    r#"{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"scope":0},{"dst":"fd00::/48"}]"#,
);

#[test]
fn each_version_has_its_form() {
    let families = concat!(
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.5/24","gateway":"10.1.2.1","#,
        r#""routes":[{"dst":"10.1.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.1.2.1"}]},"#,
        r#""ip6":{"ip":"fd00::5/64","routes":[{"dst":"fd00::/48"}]},"dns":{}}"#,
    );
    let versioned = [
        r#"{"cniVersion":"0.3.1","interfaces":[{"name":"cni0","mac":"0a:58:0a:01:02:01"},"#,
        r#"{"name":"eth0","mac":"0a:58:0a:01:02:05","sandbox":"/run/netns/x"}],"#,
        r#""ips":[{"version":"4","interface":1,"address":"10.1.2.5/24","gateway":"10.1.2.1"},"#,
        r#"{"version":"6","interface":1,"address":"fd00::5/64"}],"#,
        ROUTES,
        r#","dns":{}}"#,
    ]
    .concat();
    let current = concat!(
        r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"0a:58:0a:01:02:01","name":"cni0"},"#,
        r#"{"mac":"0a:58:0a:01:02:05","mtu":1450,"name":"eth0","sandbox":"/run/netns/x"}],"#,
        r#""ips":[{"address":"10.1.2.5/24","gateway":"10.1.2.1","interface":1},"#,
        r#"{"address":"fd00::5/64","interface":1}],"routes":[{"dst":"10.1.0.0/16"},"#,
        r#"{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"scope":0},{"dst":"fd00::/48"}]}"#,
    );
    let table = [
        (Version::V0_1_0, families.replace("0.2.0", "0.1.0")),
        (Version::V0_2_0, families.to_owned()),
        (Version::V0_3_0, versioned.replace("0.3.1", "0.3.0")),
        (Version::V0_3_1, versioned.clone()),
        (Version::V0_4_0, versioned.replace("0.3.1", "0.4.0")),
        (Version::V1_0_0, current.to_owned()),
        (Version::V1_1_0, current.replace("\"1.0.0", "\"1.1.0")),
    ];
    for (version, expected) in table {
        assert_eq!(compact(&dual_stack().encode(version).unwrap()), expected, "{version}");
    }
}

#[test]
fn documents_are_indented_by_four_spaces() {
    let dns = Dns { nameservers: vec!["10.1.2.1".to_owned()], ..Dns::default() };
    let text = AddResult { dns, ..AddResult::default() }.encode(Version::V1_1_0).unwrap();
    let expected = "{\n    \"cniVersion\": \"1.1.0\",\n    \"dns\": {\n        \
                    \"nameservers\": [\n            \"10.1.2.1\"\n        ]\n    }\n}";
    assert_eq!(text, expected);
}

#[test]
fn the_first_versions_need_an_address() {
    let bare = AddResult::default();
    for version in [Version::V0_1_0, Version::V0_2_0] {
        assert_eq!(bare.encode(version), Err(ResultError::NoAddresses));
    }
    assert!(bare.encode(Version::V0_3_0).is_ok());
}

#[test]
fn what_was_written_is_read() {
    for version in Version::ALL {
        let text = dual_stack().encode(version).unwrap();
        let read = AddResult::decode(version, serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(read.encode(version).unwrap(), text, "{version}");
    }
}

#[test]
fn a_result_without_version_has_that_of_its_configuration() {
    let old = json!({"ip4": {"ip": "10.1.2.5/24"}});
    let new = json!({"ips": [{"address": "10.1.2.5/24"}]});
    let expected = AddResult {
        ips: vec![Ip { interface: None, address: "10.1.2.5/24".parse().unwrap(), gateway: None }],
        ..AddResult::default()
    };
    assert_eq!(AddResult::decode(Version::V0_2_0, old), Ok(expected.clone()));
    assert_eq!(AddResult::decode(Version::V0_4_0, new.clone()), Ok(expected.clone()));
    assert_eq!(AddResult::decode(Version::V1_1_0, new), Ok(expected));
}

#[test]
fn a_result_of_another_generation_is_refused() {
    let old = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.2.5/24"}});
    let error = AddResult::decode(Version::V1_0_0, old).unwrap_err().to_string();
    let expected = "could not parse prevResult: result type supports [1.0.0 1.1.0] \
                    but unmarshalled CNIVersion is \"0.2.0\"";
    assert_eq!(error, expected);
}

#[test]
fn a_malformed_result_is_named() {
    let table = [
        (json!({"ips": [{"address": "10.1.2.5"}]}), "ips[0].address: invalid CIDR address"),
        (json!({"ips": [{"address": "10.1.2.5/24", "gateway": "x"}]}), "ips[0].gateway: invalid"),
        (json!({"interfaces": {}}), "interfaces: expected a sequence, found an object"),
        (json!([]), "expected a result, found a list"),
    ];
    for (result, expected) in table {
        let error = AddResult::decode(Version::V1_0_0, result).unwrap_err();
        let ResultError::Malformed(error) = error else { panic!("{error}") };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn an_empty_gateway_is_none() {
    let result = json!({"ips": [{"address": "10.1.2.5/24", "gateway": ""}]});
    assert_eq!(AddResult::decode(Version::V1_0_0, result).unwrap().ips[0].gateway, None);
}

proptest! {
    #[test]
    fn addresses_survive_every_version(
        v4 in prop::option::of((any::<u32>(), 0..=32_u8)),
        v6 in (any::<u128>(), 0..=128_u8),
        version in prop::sample::select(Version::ALL.to_vec()),
    ) {
        let v4 = v4.map(|(ip, length)| IpNetwork::new(IpAddr::V4(ip.into()), length).unwrap());
        let v6 = IpNetwork::new(IpAddr::V6(v6.0.into()), v6.1).unwrap();
        let ips = v4.into_iter().chain([v6]);
        let ips = ips.map(|address| Ip { interface: None, address, gateway: Some(address.ip()) });
        let result = AddResult { ips: ips.collect(), ..AddResult::default() };
        let text = result.encode(version).unwrap();
        let read = AddResult::decode(version, serde_json::from_str(&text).unwrap());
        prop_assert_eq!(read, Ok(result));
    }
}
