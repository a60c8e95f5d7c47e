//! Delegates and address managers that somebody else made: what they are told, and what becomes of
//! what they say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;

/// Installs a plugin that notes each call in `/run/NAME/COMMAND.env` and `.json`, and then does what
/// `script` says.
fn install(name: &str, script: &str) {
    fs::create_dir_all(format!("/run/{name}")).unwrap();
    fs::create_dir_all("/run/bin").unwrap();
    let program = format!("/run/bin/{name}");
    let log = format!("/run/{name}/$CNI_COMMAND");
    let text = format!("#!/bin/sh\nenv > {log}.env\ncat > {log}.json\n{script}\n");
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The variables and the configuration that the plugin was called with last.
fn told(name: &str, command: &str) -> (String, Value) {
    let read = |kind: &str| fs::read_to_string(format!("/run/{name}/{command}.{kind}")).unwrap();
    let variables = read("env");
    let mut ours: Vec<_> = variables.lines().filter(|line| line.starts_with("CNI_")).collect();
    ours.sort_unstable();
    (ours.join("\n"), serde_json::from_str(&read("json")).unwrap())
}

fn was_called(name: &str, command: &str) -> bool {
    Path::new(&format!("/run/{name}/{command}.json")).exists()
}

fn with_ipam(kind: &str) -> Value {
    let mut conf = stock();
    conf["ipam"] = json!({"type": kind, "option": 7});
    conf
}

const ADDRESS: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion": "1.0.0",
    "ips": [{"address": "10.1.2.77/24"}], "routes": [{"dst": "10.99.0.0/16"}],
    "dns": {"nameservers": ["10.1.2.53"]}}' || true"#;

#[test]
fn addresses_of_others_are_used() {
    sandboxed(|| {
        node();
        install("whereabouts", ADDRESS);
        let one = Container::new("one");
        let conf = with_ipam("whereabouts");
        let result = one.add(&conf).unwrap();
        let expected = json!([{"interface": 2, "address": "10.1.2.77/24", "gateway": "10.1.2.1"}]);
        assert_eq!(result["ips"], expected);
        let routes = json!([{"dst": "10.99.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]);
        assert_eq!(result["routes"], routes);
        assert_eq!(result["dns"], json!({"nameservers": ["10.1.2.53"]}));
        one.ping("10.1.2.1");
        let (variables, told_conf) = told("whereabouts", "ADD");
        let expected = "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=p\nCNI_COMMAND=ADD\n\
                        CNI_CONTAINERID=one\nCNI_IFNAME=eth0\nCNI_NETNS=/run/netns/one\n\
                        CNI_PATH=/run/empty:/run/bin";
        assert_eq!(variables, expected);
        assert_eq!(told_conf["type"], "bridge");
        assert_eq!(told_conf["ipam"]["option"], 7);
        assert_eq!(told_conf["ipam"]["ranges"], json!([[{"subnet": "10.1.2.0/24"}]]));

        one.check(&conf, &result).unwrap();
        assert_eq!(told("whereabouts", "CHECK").1["prevResult"], result);
        call("STATUS", "", "", &conf).unwrap();
        assert_eq!(
            told("whereabouts", "STATUS").0,
            "CNI_COMMAND=STATUS\nCNI_PATH=/run/empty:/run/bin"
        );
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "one", "ifname": "eth0"}]);
        call("GC", "", "", &gc).unwrap();
        let told_gc = told("whereabouts", "GC").1;
        assert_eq!(told_gc["cni.dev/valid-attachments"], gc["cni.dev/valid-attachments"]);

        fs::remove_file("/run/flannel/subnet.env").unwrap();
        call("DEL", "one", "", &conf).unwrap();
        assert!(told("whereabouts", "DEL").0.contains("CNI_NETNS=\n"));
        assert_eq!(remains(), "");
    });
}

#[test]
fn an_attachment_that_fails_gives_the_address_of_others_back() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let conf = with_ipam("whereabouts");
        let missing = one.add(&conf).unwrap_err();
        let expected = "failed to find plugin \"whereabouts\" in path [/run/empty /run/bin]";
        assert_eq!(code_and_text(&missing), (5, expected));

        install("whereabouts", ADDRESS);
        sh("ip link add cni0 type veth peer name other");
        assert_eq!(one.add(&conf).unwrap_err()["code"], 103);
        assert!(was_called("whereabouts", "DEL"));
        sh("ip link del cni0");

        let refusal = r#"echo '{"code": 123, "msg": "no room", "details": "at all"}'; exit 1"#;
        install("whereabouts", refusal);
        let refused = one.add(&conf).unwrap_err();
        assert_eq!(code_and_text(&refused), (123, "no room"));
        assert_eq!(refused["details"], "at all");

        install("whereabouts", "echo oops; exit 3");
        let text = one.add(&conf).unwrap_err();
        let expected = "plugin /run/bin/whereabouts failed (exit status: 3) and said \"oops\\n\"";
        assert_eq!(code_and_text(&text), (999, expected));
        install("whereabouts", "true");
        let nothing = one.add(&conf).unwrap_err();
        assert_eq!(code_and_text(&nothing), (999, "IPAM plugin returned missing IP config"));
        assert_eq!(remains(), "");
    });
}

#[test]
fn an_address_that_others_do_not_take_back_is_given_back_later() {
    sandboxed(|| {
        node();
        install("whereabouts", ADDRESS);
        let one = Container::new("one");
        let conf = with_ipam("whereabouts");
        one.add(&conf).unwrap();
        install("whereabouts", r#"echo '{"code": 11, "msg": "later"}'; exit 1"#);
        assert_eq!(code_and_text(&one.del(&conf).unwrap_err()), (11, "later"));
        assert!(remains().contains("flannel/one"), "what is known stays until all is done");
        fs::remove_file("/run/whereabouts/DEL.json").unwrap();
        install("whereabouts", "true");
        one.del(&conf).unwrap();
        assert!(was_called("whereabouts", "DEL"));
        assert_eq!(remains(), "");
    });
}

#[test]
fn a_delegate_of_others_serves_every_command() {
    sandboxed(|| {
        node();
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/one"}],
            "ips": [{"interface": 0, "address": "10.1.2.9/24"}],
        });
        install("ovs", &format!("[ $CNI_COMMAND = ADD ] && echo '{result}' || true"));
        let one = Container::new("one");
        let conf = stock_with(&[("type", json!("ovs"))]);
        assert_eq!(one.add(&conf).unwrap(), result);
        let delegate = told("ovs", "ADD").1;
        assert_eq!(delegate["type"], "ovs");
        assert_eq!(delegate["mtu"], 1450);
        assert_eq!(delegate.get("isGateway"), None);

        one.check(&conf, &result).unwrap();
        assert_eq!(told("ovs", "CHECK").1["prevResult"], result);
        call("STATUS", "", "", &conf).unwrap();
        assert!(was_called("ovs", "STATUS"));
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "one", "ifname": "eth0"}]);
        call("GC", "", "", &gc).unwrap();
        assert_eq!(told("ovs", "GC").1["mtu"], 1450);

        // What ADD was done with counts, not what an ADD would be done with now.
        write_subnet_file(&SUBNET_FILE.replace("1450", "1300"));
        one.del(&conf).unwrap();
        assert_eq!(told("ovs", "DEL").1["mtu"], 1450);
        assert_eq!(remains(), "");
        one.del(&conf).unwrap();
        assert_eq!(told("ovs", "DEL").1["mtu"], 1300, "the state was lost, so that is all");
    });
}

#[test]
fn a_delegate_of_others_that_fails_is_told_to_undo_it() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let conf = stock_with(&[("type", json!("ovs"))]);
        let failing =
            r#"[ $CNI_COMMAND = ADD ] || exit 0; echo '{"code": 7, "msg": "no"}'; exit 1"#;
        install("ovs", failing);
        assert_eq!(code_and_text(&one.add(&conf).unwrap_err()), (7, "no"));
        assert!(was_called("ovs", "DEL"));
        assert_eq!(remains(), "");
        install("ovs", "exit 1");
        one.add(&conf).unwrap_err();
        assert!(remains().contains("flannel/one"), "nobody else knows what is left of it");
    });
}

#[test]
fn a_delegate_cannot_be_the_delegator_or_a_path() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        for kind in ["flannel", "../../bin/sh", ".."] {
            let conf = stock_with(&[("type", json!(kind))]);
            assert_eq!(one.add(&conf).unwrap_err()["code"], 7, "{kind}");
        }
        assert_eq!(one.add(&with_ipam("../sh")).unwrap_err()["code"], 7);
        assert_eq!(remains(), "");
    });
}
