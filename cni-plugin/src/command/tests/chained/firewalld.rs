//! The plugin `firewall` beside a real firewalld, on a real system bus.

use flannel_tests::daemon::Daemon;
use flannel_tests::{program, wait};

use super::*;

/// Everybody may do everything there.
const BUS: &str = r#"<busconfig>
<listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>"#;
const NOT_RUNNING: &str = "firewalld does not run; start it or configure the backend iptables";

fn start_bus() -> Daemon {
    fs::create_dir_all("/run/dbus").unwrap();
    fs::write("/run/bus.conf", BUS).unwrap();
    let mut command = program::installed("dbus-daemon");
    let bus = Daemon::start("bus", command.args(["--config-file=/run/bus.conf", "--nofork"]));
    wait::until("the bus listens", || {
        std::os::unix::net::UnixStream::connect("/run/dbus/system_bus_socket")
            .map_err(|error| format!("{error}; {}", bus.log()))
    });
    bus
}

fn start_firewalld() -> Daemon {
    fs::create_dir_all("/run/firewalld").unwrap();
    let mut command = program::installed("firewalld");
    command.args(["--nofork", "--nopid", "--system-config", "/run/firewalld"]);
    command.args(["--log-target", "console"]).env_remove("DBUS_SYSTEM_BUS_ADDRESS");
    let firewalld = Daemon::start("firewalld", &mut command);
    wait::until("firewalld runs", || {
        let state = program::outcome(program::installed("firewall-cmd").arg("--state"));
        state.status.success().then_some(()).ok_or_else(|| firewalld.log())
    });
    firewalld
}

fn zone(zone: &str, what: &str) -> String {
    let mut command = program::installed("firewall-cmd");
    let said = program::run(command.args([format!("--zone={zone}"), format!("--{what}")]));
    said.trim().to_owned()
}

fn trusted() -> String {
    zone("trusted", "list-sources")
}

fn kept() -> usize {
    fs::read_dir("/var/lib/cni/firewall").map_or(0, Iterator::count)
}

#[test]
fn firewalld_lets_pods_through() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let attached = one.add(&stock()).unwrap();
        world(&one);
        let (_bus, _firewalld) = (start_bus(), start_firewalld());
        assert!(!one.reaches("198.51.100.2"));
        for backend in ["firewalld", ""] {
            let firewall = conf(Plugin::Firewall, &attached, json!({"backend": backend}));
            let bare = conf(Plugin::Firewall, &Value::Null, json!({"backend": backend}));
            for _ in 0..2 {
                assert_eq!(run(Plugin::Firewall, "ADD", "one", &firewall).unwrap(), attached);
                assert_eq!(trusted(), "10.1.2.2/32");
            }
            one.ping("198.51.100.2");
            assert_eq!(rules_of_pods(), 0);
            run(Plugin::Firewall, "CHECK", "one", &firewall).unwrap();

            zone("trusted", "remove-source=10.1.2.2/32");
            let gone = run(Plugin::Firewall, "CHECK", "one", &firewall).unwrap_err();
            let details = "firewall-cmd --zone=trusted --add-source=10.1.2.2/32\n";
            assert_eq!((&gone["code"], &gone["details"]), (&json!(102), &json!(details)));
            zone("trusted", "add-source=10.1.2.2/32");

            // Without the result, what was kept counts.
            for _ in 0..2 {
                run(Plugin::Firewall, "DEL", "one", &bare).unwrap();
                assert_eq!((trusted().as_str(), kept()), ("", 0));
            }
            assert!(!one.reaches("198.51.100.2"));

            // The Go plugin keeps nothing.
            zone("trusted", "add-source=10.1.2.2/32");
            for _ in 0..2 {
                run(Plugin::Firewall, "DEL", "one", &firewall).unwrap();
                assert_eq!(trusted(), "");
            }
        }
    });
}

#[test]
fn what_firewalld_refuses_leaves_nothing() {
    sandboxed(|| {
        node();
        let mut attached = Container::new("one").add(&stock()).unwrap();
        attached["ips"].as_array_mut().unwrap().push(json!({"address": "fd01::3/64"}));
        let firewall = conf(Plugin::Firewall, &attached, json!({"backend": "firewalld"}));
        let refused = || {
            let failure = run(Plugin::Firewall, "ADD", "one", &firewall).unwrap_err();
            assert_eq!((&failure["code"], kept()), (&json!(101), 0));
            failure["msg"].as_str().unwrap().to_owned()
        };
        assert_eq!(refused(), NOT_RUNNING);
        let bus = start_bus();
        assert_eq!(refused(), NOT_RUNNING);
        run(Plugin::Firewall, "DEL", "one", &firewall).unwrap();
        let firewalld = start_firewalld();
        zone("internal", "add-source=fd01::3/128");
        let text = refused();
        assert!(text.starts_with("firewalld cannot addSource(trusted, fd01::3/128)"), "{text}");
        assert!(text.contains("ZONE_CONFLICT"), "{text}");
        assert_eq!(
            (trusted(), zone("internal", "list-sources")),
            (String::new(), "fd01::3/128".to_owned())
        );
        run(Plugin::Firewall, "DEL", "one", &firewall).unwrap();
        zone("internal", "remove-source=fd01::3/128");

        let mut gc = conf(Plugin::Firewall, &Value::Null, json!({}));
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "one", "ifname": "eth0"}]);
        run(Plugin::Firewall, "ADD", "one", &firewall).unwrap();
        run(Plugin::Firewall, "GC", "one", &gc).unwrap();
        assert_eq!(trusted(), "10.1.2.2/32 fd01::3/128");
        gc["cni.dev/valid-attachments"] = json!([]);
        run(Plugin::Firewall, "GC", "one", &gc).unwrap();
        assert_eq!((trusted().as_str(), kept()), ("", 0));

        // With firewalld goes what it knew, and so it does with the bus.
        for end in [firewalld, bus] {
            fs::create_dir_all("/var/lib/cni/firewall").unwrap();
            let state = json!({
                "name": "cbr0", "ifName": "eth0", "addresses": ["10.1.2.2"],
                "firewalldZone": "trusted",
            });
            fs::write("/var/lib/cni/firewall/one", state.to_string()).unwrap();
            drop(end);
            for _ in 0..2 {
                run(Plugin::Firewall, "DEL", "one", &firewall).unwrap();
                assert_eq!(kept(), 0);
            }
        }
    });
}
