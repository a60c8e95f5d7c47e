//! What DEL removes, whatever happened before.

use std::fs;
use std::path::Path;

use fabric::netlink::{Scope, Socket, apply, observe};
use fabric::plan::{Plan, diff};
use fabric::subnet_file::SubnetFile;
use flannel_tests::sandbox::sandboxed;
use serde_json::json;

use super::*;
use crate::attachment;
use crate::bridge::Bridge;
use crate::command::del;
use crate::delegate;
use crate::invocation::Attachment;
use crate::ipam::{self, source::Source};
use crate::netconf::NetConf;
use crate::result::Ip;

#[test]
fn nothing_but_the_identity_is_needed_to_detach() {
    sandboxed(|| {
        node();
        let ways: [(&str, fn()); 5] = [
            ("lost", || fs::remove_file("/var/lib/cni/flannel/lost").unwrap()),
            ("empty", || fs::write("/var/lib/cni/flannel/empty", "").unwrap()),
            ("offline", || fs::remove_file("/run/flannel/subnet.env").unwrap()),
            ("unlinked", || drop(sh("ip link del cni0"))),
            ("alone", || ()),
        ];
        for (id, damage) in ways {
            write_subnet_file(SUBNET_FILE);
            let container = Container::new(id);
            container.add(&stock()).unwrap();
            damage();
            call("DEL", id, "", &stock()).unwrap();
            assert_eq!(remains(), "", "{id}");
        }
    });
}

#[test]
fn a_pod_of_the_go_plugin_is_checked_and_detached() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let mut result = one.add(&stock()).unwrap();
        sh("ip link set veth50419296 down");
        sh("ip link set veth50419296 name veth0a1b2c3d alias x");
        sh("ip link set veth0a1b2c3d up");
        result["interfaces"][1]["name"] = json!("veth0a1b2c3d");
        one.check(&stock(), &result).unwrap();
        sh("ip neigh replace 10.1.2.2 lladdr 02:00:00:00:00:01 dev cni0");
        one.del(&stock()).unwrap();
        assert_eq!(sh("ip neigh show 10.1.2.2"), "");
        assert!(!one.sh("ip -o link").contains("eth0"));
        assert_eq!(remains(), "");
    });
}

#[test]
fn masquerade_rules_come_and_go() {
    sandboxed(|| {
        write_subnet_file(&SUBNET_FILE.replace("IPMASQ=true", "IPMASQ=false"));
        let (one, two) = (Container::new("one"), Container::new("two"));
        one.add(&stock()).unwrap();
        two.add(&stock()).unwrap();
        assert!(rules().contains("ip saddr 10.1.2.2 ip daddr != 10.1.2.0/24"), "{}", rules());
        assert!(rules().contains("net: cbr0, if: eth0, id: one"), "{}", rules());
        one.del(&stock()).unwrap();
        assert!(!rules().contains("10.1.2.2 ") && rules().contains("10.1.2.3 "), "{}", rules());
        fs::remove_file("/var/lib/cni/flannel/two").unwrap();
        call("DEL", "two", "", &stock()).unwrap();
        assert_eq!(remains(), "");
    });
}

/// An ADD that is killed does some of its operations, from the first to any.
#[test]
fn whatever_a_killed_add_did_is_undone() {
    sandboxed(|| {
        node();
        let netns = Container::new("one").netns;
        let attachment = Attachment::named("cbr0", "one", "eth0");
        let conf: NetConf = serde_json::from_value(stock()).unwrap();
        let subnet_file = SUBNET_FILE.replace("IPMASQ=true", "IPMASQ=false");
        let subnet_file = SubnetFile::parse(&subnet_file).unwrap();
        let delegate = delegate::configuration(&conf, &subnet_file).unwrap();
        let bridge = Bridge::new(&delegate, "").unwrap();
        let Some(Source::HostLocal(ipam)) = &bridge.ipam else { panic!("not host-local") };
        let ips: Vec<Ip> = ipam::allocate(ipam, &attachment, true).unwrap().ips;
        let desired = attachment::desired(&attachment, Path::new(&netns), &bridge, &ips, &[]);
        let mut socket = Socket::open().unwrap();
        for count in 0.. {
            let observed = observe(&mut socket, &Scope::of(&desired.host)).unwrap();
            let plan = diff(&desired.host, &observed);
            if count > plan.ops.len() {
                break;
            }
            let ops = plan.ops[..count].to_vec();
            let failures = apply(&mut socket, &Plan { ops });
            assert!(failures.is_empty(), "{failures:?}");
            del::detach(&mut socket, &attachment, true).unwrap();
            assert_eq!(remains(), "", "after {count} operations");
        }
    });
}
