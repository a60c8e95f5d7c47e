//! What CHECK finds, and what it does not mind.

use std::fs;

use flannel_tests::sandbox::sandboxed;
use serde_json::json;

use super::*;

#[test]
fn check_tells_what_would_mend_it() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let conf = stock_with(&[("ipMasq", json!(true))]);
        let result = one.add(&conf).unwrap();
        one.check(&conf, &result).unwrap();
        let inside = "in /run/netns/one:\n";
        let table = [
            (
                "bridge link set dev veth50419296 hairpin off",
                "bridge link set dev veth50419296 hairpin on\n".to_owned(),
            ),
            (
                "ip address del 10.1.2.1/24 dev cni0",
                "ip address replace 10.1.2.1/24 dev cni0\n".to_owned(),
            ),
            (
                "ip link set veth50419296 nomaster",
                "ip link set veth50419296 master cni0\n\
                  bridge link set dev veth50419296 hairpin on\n"
                    .to_owned(),
            ),
            (
                "ip -n one route del default",
                format!("{inside}ip route add 0.0.0.0/0 via 10.1.2.1 dev eth0 proto 199\n"),
            ),
            (
                "ip -n one link set eth0 address 02:00:00:00:00:01",
                format!("{inside}ip link set eth0 address 0a:58:0a:01:02:02\n"),
            ),
            ("sysctl -w net.ipv4.ip_forward=0", "sysctl -w net/ipv4/ip_forward=1\n".to_owned()),
        ];
        for (damage, expected) in table {
            sh(damage);
            let failure = one.check(&conf, &result).unwrap_err();
            assert_eq!(code_and_text(&failure), (102, "the attachment is not as it was made"));
            assert_eq!(failure["details"], expected, "{damage}");
            for command in expected.lines().filter(|line| !line.starts_with("in ")) {
                let in_sandbox = expected.starts_with(inside);
                if in_sandbox {
                    one.sh(command)
                } else {
                    sh(command)
                };
            }
            one.check(&conf, &result).unwrap();
        }
        sh("nft flush chain inet cni_plugins_masquerade masq_checks");
        let failure = one.check(&conf, &result).unwrap_err();
        let details = failure["details"].as_str().unwrap();
        assert!(details.contains("ip saddr 10.1.2.2"), "{details}");
    });
}

#[test]
fn check_bears_what_later_plugins_do() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let mut result = one.add(&stock()).unwrap();
        one.sh("ip address add 10.7.7.7/32 dev eth0");
        one.sh("ip route add 10.6.0.0/16 dev eth0");
        one.sh("ip route replace default via 10.1.2.9 dev eth0");
        one.sh("ip link set eth0 mtu 1300");
        one.sh("ip link set lo down");
        one.sh("ip link set eth0 address 02:00:00:00:00:01");
        result["interfaces"][2]["mac"] = json!("02:00:00:00:00:01");
        let interfaces = result["interfaces"].as_array_mut().unwrap();
        interfaces.push(json!({"name": "ifb0"}));
        one.check(&stock(), &result).unwrap();
    });
}

#[test]
fn check_needs_the_result_and_the_reservation() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let result = one.add(&stock()).unwrap();
        let failure = call("CHECK", &one.id, &one.netns, &stock()).unwrap_err();
        assert_eq!(code_and_text(&failure), (7, "Required prevResult missing"));
        let mut elsewhere = result.clone();
        elsewhere["interfaces"][2]["sandbox"] = json!("/run/netns/two");
        assert_eq!(one.check(&stock(), &elsewhere).unwrap_err()["code"], 102);
        fs::write("/var/lib/cni/networks/cbr0/10.1.2.2", "two\r\neth0").unwrap();
        let failure = one.check(&stock(), &result).unwrap_err();
        let expected = "host-local: Failed to find address added by container one";
        assert_eq!(code_and_text(&failure), (102, expected));
    });
}
