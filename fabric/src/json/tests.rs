//! The rules of Go, and that plain documents mean what they mean to serde_json.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Serialize;

use super::*;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    name: String,
    mtu: u32,
    weight: f64,
    signed: i16,
    hairpin_mode: Option<bool>,
    skip: bool,
    mode: Mode,
    delegate: Option<Box<Conf>>,
    ports: Vec<Port>,
    raw: Value,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    host_port: u16,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Access,
    Trunk,
}

fn decode(text: &str) -> Result<Conf, String> {
    from_slice(text.as_bytes()).map_err(|error| error.to_string())
}

fn conf(change: impl FnOnce(&mut Conf)) -> Conf {
    let mut conf = Conf::default();
    change(&mut conf);
    conf
}

#[test]
fn go_is_lenient_and_so_are_we() {
    let port = |host_port| Port { host_port, host_ip: String::new() };
    let nested = |mtu| Some(Box::new(conf(|c| c.mtu = mtu)));
    let table: Vec<(&str, Conf)> = vec![
        ("{}", Conf::default()),
        ("null", Conf::default()),
        (" {\"mtu\": 1450}\n", conf(|c| c.mtu = 1450)),
        (r#"{"MTU": 1450}"#, conf(|c| c.mtu = 1450)),
        (r#"{"HairpinMode": true}"#, conf(|c| c.hairpin_mode = Some(true))),
        (r#"{"delegate": {"Mtu": 9}}"#, conf(|c| c.delegate = nested(9))),
        (r#"{"Ports": [{"HostPort": 80}]}"#, conf(|c| c.ports = vec![port(80)])),
        (r#"{"ports": [{"hostPort": 80, "HostIP": null}]}"#, conf(|c| c.ports = vec![port(80)])),
        (r#"{"mtu": 1, "mtu": 2}"#, conf(|c| c.mtu = 2)),
        (r#"{"mtu": 1, "MTU": 2}"#, conf(|c| c.mtu = 2)),
        (r#"{"MTU": 1, "mtu": 2}"#, conf(|c| c.mtu = 2)),
        (r#"{"mtu": 1, "mtu": null}"#, conf(|c| c.mtu = 1)),
        (r#"{"mtu": null}"#, Conf::default()),
        (r#"{"hairpinMode": null, "raw": null, "ports": null}"#, Conf::default()),
        (r#"{"mode": "trunk"}"#, conf(|c| c.mode = Mode::Trunk)),
        (r#"{"unknown": {"mtu": "x"}, "": 0}"#, Conf::default()),
        ("{\"\u{17f}\u{212a}ip\": true}", conf(|c| c.skip = true)),
        (r#"{"weight": 3}"#, conf(|c| c.weight = 3.0)),
    ];
    for (text, expected) in table {
        assert_eq!(decode(text), Ok(expected), "{text}");
    }
}

#[test]
fn keys_of_maps_are_kept_as_they_are() {
    let conf = decode(r#"{"labels": {"A": "1", "a": "2", "a": "3"}, "raw": {"B": null}}"#);
    let conf = conf.unwrap();
    assert_eq!(conf.labels, BTreeMap::from([("A", "1"), ("a", "3")].map(owned)));
    assert_eq!(conf.raw, serde_json::json!({"B": null}));
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn an_exact_name_goes_before_a_similar_one() {
    assert_eq!(field_named("ip", &["IP", "ip"]), Some("ip"));
    assert_eq!(field_named("Ip", &["IP", "ip"]), Some("IP"));
    assert_eq!(field_named("ipv", &["IP", "ip"]), None);
}

#[test]
fn mismatches_name_the_path() {
    let table = [
        (r#"{"mtu": "1500"}"#, "mtu: expected u32, found string \"1500\""),
        (r#"{"mtu": 1.5}"#, "mtu: expected u32, found floating point `1.5`"),
        (r#"{"mtu": -1}"#, "mtu: expected u32, found integer `-1`"),
        (r#"{"mtu": 1e3}"#, "mtu: expected u32, found floating point `1000.0`"),
        (r#"{"mtu": 4294967296}"#, "mtu: expected u32, found integer `4294967296`"),
        (r#"{"delegate": {"MTU": true}}"#, "delegate.mtu: expected u32, found boolean `true`"),
        (r#"{"delegate": []}"#, "delegate: expected struct Conf, found a list"),
        (r#"{"delegate": 4}"#, "delegate: expected struct Conf, found a number"),
        (r#"{"hairpinMode": {}}"#, "hairpinMode: expected a boolean, found an object"),
        (r#"{"name": []}"#, "name: expected a string, found a list"),
        (r#"{"ports": {}}"#, "ports: expected a sequence, found an object"),
        (
            r#"{"ports": [{"hostPort": 1}, {"hostPort": 65536}]}"#,
            "ports[1].hostPort: expected u16, found integer `65536`",
        ),
        (r#"{"ports": [{}]}"#, "ports[0]: missing field `hostPort`"),
        (r#"{"labels": {"a": null}}"#, "labels.a: expected a string, found null"),
        (r#"{"mode": "both"}"#, "mode: unknown variant `both`, expected `access` or `trunk`"),
        (r#"{"mode": {"trunk": 1}}"#, "mode: expected enum Mode, found an object"),
    ];
    for (text, expected) in table {
        assert_eq!(decode(text), Err(expected.to_owned()), "{text}");
    }
}

#[test]
fn anything_but_one_document_is_an_error() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for text in ["", " ", "{", "{} {}", "{} x", "{'a': 1}", "{\"mtu\": 01}", "\u{feff}{}", &deep] {
        assert!(decode(text).is_err(), "{text}");
    }
}

#[test]
fn a_part_kept_as_it_was_follows_the_same_rules() {
    let value = serde_json::json!({"MTU": 7, "Name": null, "delegate": {"Skip": true}});
    let expected = conf(|c| {
        c.mtu = 7;
        c.delegate = Some(Box::new(conf(|c| c.skip = true)));
    });
    assert_eq!(from_value(value), Ok(expected));
}

/// Any JSON without null, whose meaning differs on purpose.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0..70_000_u32).prop_map(Value::from),
        (-1e9..1e9_f64).prop_map(Value::from),
        prop_oneof![Just("trunk".to_owned()), ".{0,6}"].prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_key(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    let known = ["name", "mtu", "weight", "signed", "hairpinMode", "skip", "mode", "delegate"];
    let more = ["ports", "raw", "labels", "hostPort", "hostIP", "zzz", "\u{e9}"];
    prop::sample::select([known.as_slice(), more.as_slice()].concat()).prop_map(str::to_owned)
}

fn agrees_with_serde_json<T>(value: &Value) -> Result<(), TestCaseError>
where
    T: DeserializeOwned + PartialEq + fmt::Debug,
{
    let text = serde_json::to_vec(value).unwrap();
    let ours = from_slice::<T>(&text).map_err(|_error| ());
    let theirs = serde_json::from_slice::<T>(&text).map_err(|_error| ());
    prop_assert_eq!(ours, theirs);
    Ok(())
}

proptest! {
    #[test]
    fn without_such_tricks_the_result_is_that_of_serde_json(value in any_value()) {
        agrees_with_serde_json::<Value>(&value)?;
        agrees_with_serde_json::<BTreeMap<String, u32>>(&value)?;
        agrees_with_serde_json::<Vec<i16>>(&value)?;
        if value.is_object() && !has_list_or_object_for_scalar(&value) {
            agrees_with_serde_json::<Conf>(&value)?;
        }
    }

    #[test]
    fn no_input_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = from_slice::<Conf>(&bytes);
    }

    #[test]
    fn what_was_written_is_read(mtu: u32, signed: i16, skip: bool, name in ".{0,9}") {
        let conf = conf(|c| {
            (c.mtu, c.signed, c.skip) = (mtu, signed, skip);
            c.name = name;
            c.delegate = Some(Box::default());
        });
        let text = serde_json::to_vec(&conf).unwrap();
        prop_assert_eq!(from_slice(&text), Ok(conf));
    }
}

/// `serde_json` also takes a list for a struct and an object for a variant.
fn has_list_or_object_for_scalar(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| {
            let shape = match key.as_str() {
                "delegate" => inner.is_array(),
                "ports" => inner.as_array().is_some_and(|list| list.iter().any(Value::is_array)),
                "mode" => inner.is_object(),
                _ => false,
            };
            shape || has_list_or_object_for_scalar(inner)
        }),
        Value::Array(list) => list.iter().any(has_list_or_object_for_scalar),
        _ => false,
    }
}
