//! What is asked for, and what is refused, by the rules of the specification.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::{Error, Failure};

const CONFIG: &str = r#"{"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"}"#;

struct Case {
    variables: BTreeMap<&'static str, &'static str>,
    config: String,
}

fn case(command: &'static str) -> Case {
    let variables = BTreeMap::from([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "one"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    Case { variables, config: CONFIG.to_owned() }
}

impl Case {
    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.insert(name, value);
        self
    }

    fn reading(mut self, config: &str) -> Self {
        config.clone_into(&mut self.config);
        self
    }

    fn request(&self) -> Result<Request, InvocationError> {
        let lookup = |name: &str| self.variables.get(name).map(|value| (*value).to_owned());
        Invocation::collect(lookup, self.config.as_bytes())?.request(Version::V0_1_0)
    }

    fn failure(&self) -> (u32, String, String) {
        let error = Error::from(self.request().unwrap_err());
        let Failure { code, msg, details, .. } = error.failure(Version::NEWEST);
        (code, msg, details)
    }
}

#[test]
fn a_complete_request_is_typed() {
    let Ok(Request::Add(call, netns)) = case("ADD").request() else { panic!("not an ADD") };
    assert_eq!(netns, PathBuf::from("/run/netns/x"));
    assert_eq!(call.attachment.network.as_str(), "cbr0");
    assert_eq!(call.attachment.container.as_str(), "one");
    assert_eq!(call.attachment.if_name.as_str(), "eth0");
    assert_eq!(call.version, Version::V1_0_0);
    assert_eq!(call.config["name"], "cbr0");
    assert!(!call.own_netns_allowed);
}

#[test]
fn commands_need_different_variables() {
    let everything = "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]";
    let table = [
        ("ADD", everything),
        ("CHECK", everything),
        ("DEL", "[CNI_CONTAINERID,CNI_IFNAME,CNI_PATH]"),
        ("GC", "[CNI_PATH]"),
        ("STATUS", "[CNI_PATH]"),
        ("", "[CNI_COMMAND]"),
    ];
    for (command, missing) in table {
        let empty = Case { variables: BTreeMap::from([("CNI_COMMAND", command)]), ..case("") };
        let text = format!("required env variables {missing} missing");
        assert_eq!(empty.failure(), (4, text, String::new()), "{command}");
    }
}

/// All that is missing is told at once, and an empty value is a missing one.
#[test]
fn missing_variables_are_told_in_this_order() {
    let failure = case("ADD").with("CNI_PATH", "").with("CNI_NETNS", "").failure();
    let text = "required env variables [CNI_NETNS,CNI_PATH] missing";
    assert_eq!(failure, (4, text.to_owned(), String::new()));
    let failure = case("").with("CNI_CONTAINERID", "").with("CNI_IFNAME", "").failure();
    let text = "required env variables [CNI_COMMAND] missing";
    assert_eq!(failure, (4, text.to_owned(), String::new()));
}

#[test]
fn a_configuration_that_cannot_be_read_is_told() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("it broke"))
        }
    }
    let case = case("DEL");
    let lookup = |name: &str| case.variables.get(name).map(|value| (*value).to_owned());
    let error = Error::from(Invocation::collect(lookup, Broken).unwrap_err());
    let failure = error.failure(Version::NEWEST);
    assert_eq!((failure.code, failure.msg.as_str()), (5, "error reading from stdin: it broke"));
}

#[test]
fn version_needs_nothing_and_reads_nothing() {
    let bare = Case { variables: BTreeMap::from([("CNI_COMMAND", "VERSION")]), ..case("") };
    assert_eq!(bare.reading("no JSON").request().unwrap(), Request::Version);
}

#[test]
fn a_missing_namespace_is_fine_for_del() {
    let Ok(Request::Del(_, netns)) = case("DEL").with("CNI_NETNS", "").request() else {
        panic!("not a DEL")
    };
    assert_eq!(netns, None);
}

#[test]
fn the_namespace_check_can_be_lifted() {
    for (value, expected) in [("1", true), ("tRuE", true), ("yes", false), ("0", false)] {
        let Ok(Request::Check(call, _)) = case("CHECK").with("CNI_NETNS_OVERRIDE", value).request()
        else {
            panic!("not a CHECK")
        };
        assert_eq!(call.own_netns_allowed, expected, "{value}");
    }
}

#[test]
fn invalid_variables_are_told_before_missing_ones() {
    let shorter = "interface name should be less than 16 characters";
    let characters = "interface name contains / or : or whitespace characters";
    let table = [
        ("CNI_CONTAINERID", "a/b", "invalid characters in containerID", "a/b"),
        ("CNI_CONTAINERID", "-a", "invalid characters in containerID", "-a"),
        ("CNI_IFNAME", "sixteen--letters", "interface name is too long", shorter),
        ("CNI_CONTAINERID", "one\n", "invalid characters in containerID", "one\n"),
        ("CNI_CONTAINERID", "..", "invalid characters in containerID", ".."),
        ("CNI_IFNAME", ".", "interface name is . or ..", ""),
        ("CNI_IFNAME", "..", "interface name is . or ..", ""),
        ("CNI_IFNAME", "eth0:1", characters, ""),
        ("CNI_IFNAME", "../eth0", characters, ""),
        ("CNI_IFNAME", "eth 0", characters, ""),
        ("CNI_IFNAME", "eth\u{a0}0", characters, ""),
        ("CNI_IFNAME", "eth\u{2003}0", characters, ""),
    ];
    for (name, value, msg, details) in table {
        let failure = case("ADD").with("CNI_PATH", "").with(name, value).failure();
        assert_eq!(failure, (4, msg.to_owned(), details.to_owned()), "{name}={value}");
    }
}

#[test]
fn the_configuration_is_checked_in_this_order() {
    let table = [
        (
            "",
            6,
            "error unmarshall network config: EOF while parsing a value at line 1 column 0",
            "",
        ),
        (
            r#"{"name": "a"} {"#,
            6,
            "error unmarshall network config: trailing characters at line 1 column 15",
            "",
        ),
        (
            r#"{"name": 4}"#,
            6,
            "error unmarshall network config: name: expected a string, found integer `4`",
            "",
        ),
        ("{}", 7, "missing network name", ""),
        (r#"{"name": "a b"}"#, 7, "invalid characters found in network name", "a b"),
        (r#"{"name": "../a"}"#, 7, "invalid characters found in network name", "../a"),
        (
            r#"{"name": "a", "cniVersion": 1}"#,
            6,
            "decoding version from network config: cniVersion: expected a string, found integer `1`",
            "",
        ),
        (
            r#"{"name": "a", "cniVersion": "9.0.0", "delegate": 1}"#,
            1,
            "incompatible CNI versions",
            "config is \"9.0.0\", plugin supports [\"0.1.0\" \"0.2.0\" \"0.3.0\" \"0.3.1\" \
             \"0.4.0\" \"1.0.0\" \"1.1.0\"]",
        ),
    ];
    for (config, code, msg, details) in table {
        let failure = case("DEL").reading(config).failure();
        assert_eq!(failure, (code, msg.to_owned(), details.to_owned()), "{config}");
    }
}

#[test]
fn an_unknown_command_comes_after_the_name_and_before_the_version() {
    let unknown = (4, "unknown CNI_COMMAND: add".to_owned(), String::new());
    assert_eq!(case("add").failure(), unknown);
    assert_eq!(case("add").reading(r#"{"name": "a", "cniVersion": 1}"#).failure(), unknown);
    assert_eq!(case("add").reading("{}").failure().0, 7);
}

#[test]
fn commands_that_a_version_does_not_have_are_refused() {
    for (command, msg) in [
        ("GC", "config version does not allow GC"),
        ("STATUS", "config version does not allow STATUS"),
    ] {
        assert_eq!(case(command).failure(), (1, msg.to_owned(), String::new()));
    }
    let check = case("CHECK").reading(&CONFIG.replace("1.0.0", "0.3.1")).failure();
    assert_eq!(check, (1, "config version does not allow CHECK".to_owned(), String::new()));
    let newer = case("GC").reading(&CONFIG.replace("1.0.0", "1.2.0")).failure();
    assert_eq!(newer, (1, "plugin version does not allow GC".to_owned(), String::new()));
    let garbled = case("CHECK").reading(&CONFIG.replace("1.0.0", "1.0.0.0")).failure();
    assert_eq!(
        garbled,
        (6, "invalid version \"1.0.0.0\": too many parts".to_owned(), String::new())
    );
    let new = CONFIG.replace("1.0.0", "1.1.0");
    assert!(matches!(case("GC").reading(&new).request(), Ok(Request::Gc(_))));
    assert!(matches!(case("STATUS").reading(&new).request(), Ok(Request::Status(_))));
}

#[test]
fn documents_have_the_version_of_the_configuration_if_possible() {
    let table = [
        (r#"{"name": "a"}"#, Version::V0_1_0),
        (r#"{"name": "a", "CNIVERSION": "0.4.0"}"#, Version::V0_4_0),
        (r#"{"name": "a", "cniVersion": "0.4.1"}"#, Version::NEWEST),
        (r#"{"name": "a", "cniVersion": {}}"#, Version::NEWEST),
    ];
    for (config, expected) in table {
        let case = case("DEL").reading(config);
        let lookup = |name: &str| case.variables.get(name).map(|value| (*value).to_owned());
        let invocation = Invocation::collect(lookup, case.config.as_bytes()).unwrap();
        assert_eq!(invocation.version(), expected, "{config}");
    }
}

proptest! {
    #[test]
    fn no_input_makes_it_panic(
        command in prop::sample::select(Command::ALL.map(Command::as_str).to_vec()),
        value in ".{0,20}",
        config in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let variable = |name: &str| {
            Some(if name == "CNI_COMMAND" { command.to_owned() } else { value.clone() })
        };
        let _ = Invocation::collect(variable, config.as_slice())
            .and_then(|invocation| invocation.request(Version::V0_1_0));
    }

    #[test]
    fn what_is_accepted_is_safe_in_a_path(text in ".{0,20}") {
        if let Some(id) = Id::new(&text) {
            prop_assert_eq!(id.as_str(), text.as_str());
            let path = std::path::Path::new("/d").join(&text);
            prop_assert_eq!(path.parent(), Some(std::path::Path::new("/d")));
            prop_assert!(!text.starts_with('.'));
        }
    }
}
