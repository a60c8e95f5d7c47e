//! Everything of the plugin that reads foreign bytes, fed with bytes of every kind: nothing may panic,
//! hang, or lead out of the directories that are the plugin's.
//!
//! Each public function takes any bytes and panics if they break something. Fuzzing calls them
//! (`make fuzz`), and so do the property tests below; `PROPTEST_CASES=1000000` goes on longer.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use fabric::subnet_file::SubnetFile;
use serde_json::{Map, Value};

use crate::args::Args;
use crate::bandwidth::Limits;
use crate::bridge::Bridge;
use crate::dbus::Message;
use crate::delegate;
use crate::firewall::Firewall;
use crate::invocation::{Attachment, Id, Invocation, Request};
use crate::ipam::config::HostLocal;
use crate::ipam::fixed::Fixed;
use crate::ipam::store::{Owner, Store};
use crate::macvlan::Macvlan;
use crate::netconf::NetConf;
use crate::plugin::Plugin;
use crate::portmap::PortMap;
use crate::ptp::Ptp;
use crate::result::AddResult;
use crate::state::{State, StateFile};
use crate::tuning::Tuning;
use crate::version::Version;

/// Standard input, for every plugin.
///
/// # Panics
/// If a configuration is accepted that cannot be what it says.
pub fn configuration(bytes: &[u8]) {
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some("ADD".to_owned()),
        _ => Some("x".to_owned()),
    };
    for plugin in Plugin::ALL {
        let Ok(invocation) = Invocation::collect(variable, bytes) else { return };
        let Ok(Request::Add(call, _)) = invocation.request(plugin.oldest_version()) else {
            continue;
        };
        check_name(call.attachment.network.as_str());
        understand(&call.config, &call.attachment, call.version);
    }
}

/// `CNI_ARGS`, and every other variable.
///
/// # Panics
/// If a name is accepted that could lead somewhere.
pub fn variables(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _parsed = Args::parse(&text);
    let mut values = text.split('\n').map(str::to_owned);
    let mut next = || values.next().unwrap_or_default();
    let (command, container, if_name, args) = (next(), next(), next(), next());
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(command.clone()),
        "CNI_CONTAINERID" => Some(container.clone()),
        "CNI_IFNAME" => Some(if_name.clone()),
        "CNI_ARGS" => Some(args.clone()),
        _ => Some("/x".to_owned()),
    };
    let stdin = br#"{"cniVersion": "1.1.0", "name": "x"}"#;
    let Ok(invocation) = Invocation::collect(variable, &stdin[..]) else { return };
    let Ok(request) = invocation.request(Version::V0_1_0) else { return };
    if let Request::Add(call, _) | Request::Del(call, _) | Request::Check(call, _) = request {
        check_name(call.attachment.container.as_str());
        check_name(call.attachment.if_name.as_str());
        let _understood = Fixed::new(&call.config, &Args::parse(&call.args).unwrap_or_default());
    }
}

/// The file that the agent writes.
///
/// # Panics
/// If it is accepted and no delegate can be made of it.
pub fn subnet_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(file) = SubnetFile::parse(text) else { return };
    let conf = NetConf { name: "x".to_owned(), ..NetConf::default() };
    let delegate =
        delegate::configuration(&conf, &file).expect("without a template nothing is wrong");
    let _understood = Bridge::new(&delegate, "");
}

/// What is kept from ADD to DEL.
///
/// # Panics
/// If it is neither read nor removed.
pub fn state(directory: &Path, bytes: &[u8]) {
    let attachment = attachment();
    fs::write(directory.join(attachment.container.as_str()), bytes).expect("it is writable");
    let file = StateFile::of(directory, &attachment);
    if let State::Delegate(delegate) = file.read() {
        understand(&delegate, &attachment, Version::NEWEST);
    }
    StateFile::all(directory, &attachment.network);
    StateFile::remove_orphans(directory);
    file.remove().expect("it is writable");
    // One of another network stays, and counts as nothing.
    assert_eq!(file.read(), State::Missing);
}

/// A file among the reservations: its name, a line end, its content.
///
/// # Panics
/// If somebody else's file is removed, or one of ours stays.
pub fn reservation(directory: &Path, bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let name = parts.next().unwrap_or_default();
    let content = parts.next().unwrap_or_default();
    let attachment = attachment();
    let store = Store::open(directory, &attachment.network).expect("it is writable");
    let foreign = Path::new(OsStr::from_bytes(name));
    let is_name = (1..200).contains(&name.len())
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
        && !name.starts_with(b".")
        && name != b"lock";
    let path = directory.join(attachment.network.as_str()).join(foreign);
    if is_name {
        fs::write(&path, content).expect("it is writable");
    }
    let locked = store.lock().expect("nobody has it");
    let owner = Owner::of(&attachment);
    let held = locked.addresses_of(&owner).expect("it is readable");
    let released = locked.release(&owner).expect("it is writable");
    assert!(released.is_subset(&held));
    locked.last_reserved(0);
    locked.release_damaged().expect("it is writable");
    locked.forget_earlier_boots().expect("it is writable");
    if is_name {
        let _may_have_been_one_of_ours = fs::remove_file(path);
    }
}

/// What the system bus sends.
pub fn bus_message(bytes: &[u8]) {
    let _understood = Message::decode(bytes);
}

fn attachment() -> Attachment {
    let id = |text| Id::new(text).expect("letters are an identity");
    let if_name = "eth0".parse().expect("letters and digits are a name");
    Attachment { network: id("cbr0"), container: id("one"), if_name }
}

/// Such a name is one component of a path.
fn check_name(name: &str) {
    assert!(!name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']));
    assert_eq!(Path::new(name).components().count(), 1, "{name:?}");
}

/// Lets every plugin read a configuration as its own.
fn understand(config: &Map<String, Value>, attachment: &Attachment, version: Version) {
    let args = Args::default();
    let _understood = Bridge::new(config, "");
    let _understood = PortMap::new(config);
    let _understood = Limits::new(config);
    let _understood = Firewall::new(config);
    let _understood = Ptp::new(config, "");
    let _understood = Macvlan::new(config, "");
    let _understood = Fixed::new(config, &args);
    if let Ok(tuning) = Tuning::new(config, "", attachment.if_name, None) {
        let is_inside = |path: PathBuf| {
            let normal = |part| matches!(part, Component::Normal(_) | Component::RootDir);
            path.components().all(normal) && path.starts_with("/proc/sys/net")
        };
        let mut paths = tuning.sysctls.keys().map(|key| Path::new("/proc/sys").join(key.as_path()));
        assert!(paths.all(is_inside), "{:?}", tuning.sysctls);
    }
    if let Ok(host_local) = HostLocal::new(config, &args) {
        for set in &host_local.sets {
            set.choose(&BTreeSet::new(), None);
        }
    }
    if let Ok(conf) = NetConf::new(config) {
        let file = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1450\n\
                    FLANNEL_IPMASQ=true\n";
        let file = SubnetFile::parse(file).expect("a subnet file");
        let _configured = delegate::configuration(&conf, &file);
    }
    for key in ["prevResult", "result"] {
        let Some(result) = config.get(key) else { continue };
        let Ok(result) = AddResult::decode(version, result.clone()) else { continue };
        let Ok(text) = result.encode(version) else { continue };
        let value = serde_json::from_str(&text).expect("what was written is JSON");
        let read = AddResult::decode(version, value).expect("what was written can be read");
        assert_eq!(read.encode(version).as_ref(), Ok(&text));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that look like what is read, with something broken.
    fn bytes_like(examples: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let anything = prop::collection::vec(any::<u8>(), 0..64);
        let changed = (0..examples.len(), any::<prop::sample::Index>(), any::<u8>(), 0..3_usize);
        let changed = changed.prop_map(|(example, place, byte, kind)| {
            let mut bytes = examples[example].as_bytes().to_vec();
            let place = place.index(bytes.len());
            match kind {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                _ => bytes.truncate(place),
            }
            bytes
        });
        prop_oneof![1 => anything, 4 => changed]
    }

    const CONFIGURATIONS: &[&str] = &[
        r#"{"cniVersion":"1.1.0","name":"cbr0","type":"flannel","delegate":{"isDefaultGateway":true},
            "runtimeConfig":{"portMappings":[{"HostPort":80,"ContainerPort":80,"Protocol":"tcp"}],
            "bandwidth":{"IngressRate":1,"IngressBurst":8}}}"#,
        r#"{"cniVersion":"0.4.0","name":"cbr0","bridge":"br0","vlan":5,"mtu":1500,"ipMasq":true,
            "ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/8","rangeStart":"10.1.0.0"}],
            [{"subnet":"fd00::/8"}]],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]},
            "prevResult":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/8"}]}}"#,
        r#"{"cniVersion":"1.0.0","name":"cbr0","sysctl":{"net.ipv4.conf.IFNAME.x":"1"},"mac":"02::",
            "ipam":{"type":"static","addresses":[{"address":"10.0.0.2/8","gateway":"10.0.0.1"}]},
            "mode":"vepa","ingressPolicy":"isolated","iptablesAdminChainName":"A","snat":true}"#,
    ];

    proptest! {
        #[test]
        fn any_configuration_is_understood_or_refused(bytes in bytes_like(CONFIGURATIONS)) {
            configuration(&bytes);
        }

        #[test]
        fn any_variables_are_understood_or_refused(bytes in bytes_like(&[
            "ADD\none\neth0\nIP=10.1.2.3/24;MAC=02:00:00:00:00:01;GATEWAY=10.1.2.1;IgnoreUnknown=1",
            "DEL\n../one\n..\n;=;",
        ])) {
            variables(&bytes);
        }

        #[test]
        fn any_subnet_file_is_understood_or_refused(bytes in bytes_like(&[
            "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1450\n\
             FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_IPMASQ=true\n",
        ])) {
            subnet_file(&bytes);
        }

        #[test]
        fn any_state_is_read_and_removed(bytes in bytes_like(CONFIGURATIONS)) {
            let directory = tempfile::tempdir().unwrap();
            state(directory.path(), &bytes);
        }

        #[test]
        fn any_message_of_the_bus_is_understood_or_refused(bytes in bytes_like(&[
            "l\x02\x01\x01\x04\0\0\0\x09\0\0\0\x0f\0\0\0\
             \x05\x01u\0\x02\0\0\0\x08\x01g\0\x01b\0\0\x01\0\0\0",
        ])) {
            bus_message(&bytes);
        }

        #[test]
        fn any_file_among_the_reservations_is_borne(bytes in bytes_like(&[
            "10.1.2.3\none\r\neth0", "10.1.2.3\none", "last_reserved_ip.0\n10.1.2.3", "fd00::1\n",
        ])) {
            let directory = tempfile::tempdir().unwrap();
            reservation(directory.path(), &bytes);
        }
    }
}
