//! The packet filter rules of a node: chosen, switched, repaired, and never in the way of others.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::namespace::Namespace;
use flannel_tests::pod::{self, Pod};
use flannel_tests::program;
use flannel_tests::rule_engine::RuleEngine;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, ping, source_seen_by};
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

/// Runs a command of blanks and words; a no-break space stands for a blank.
fn run(node: &Namespace, command: &str) -> String {
    let (program, arguments) = command.split_once(' ').expect("a program and its arguments");
    let changes_tables = program.starts_with("iptables-") && !program.ends_with("-save");
    let arguments = arguments.split(' ').map(|word| word.replace('\u{a0}', " "));
    // flanneld may have the lock of the older tables.
    let wait = changes_tables.then(|| "--wait".to_owned());
    program::run(node.command(program).args(wait).args(arguments))
}

/// A host that is no node, and a pod of the first node that speaks to it through masquerading.
fn outside(cluster: &Cluster) -> (Namespace, Ipv4Addr, Pod) {
    let outside = cluster.underlay().host("outside", 200);
    let pod = pod::attach_to_each(&cluster.nodes()[..1], 1).remove(0);
    (outside, Underlay::address(200), pod)
}

#[test]
fn switching_the_engine_by_a_restart_loses_no_packet_of_a_masqueraded_flow() {
    sandboxed(|| {
        switching_loses_no_packet(|cluster, engine| {
            cluster.stop(1);
            cluster.store().configure(&engine.network());
            cluster.start(1);
            cluster.wait_until_ready(1);
        });
    });
}

#[test]
fn switching_the_engine_without_a_restart_loses_no_packet_of_a_masqueraded_flow() {
    sandboxed(|| {
        switching_loses_no_packet(|cluster, engine| cluster.store().configure(&engine.network()));
    });
}

fn switching_loses_no_packet(switch: fn(&mut Cluster, RuleEngine)) {
    let mut cluster = Cluster::unconfigured(1, Store::any());
    cluster.store().configure(&RuleEngine::Nftables.network());
    cluster.start_all();
    let (outside, address, pod) = outside(&cluster);
    let node = cluster.node(1).namespace().clone();
    plant_foreign_rules(&node);
    let foreign = foreign_rules(&node);
    let flow = Flow::start(pod.namespace(), &outside, address, 1000).unwrap();
    let go_on = |count: u64| {
        let before = flow.received();
        wait::until_true("the flow goes on", || flow.received() > before + count);
    };
    go_on(300);
    for engine in [RuleEngine::IptablesNft, RuleEngine::Nftables, RuleEngine::IptablesNft] {
        switch(&mut cluster, engine);
        wait::until(&format!("the rules are in {engine:?} and nowhere else"), || {
            let listings = RuleEngine::ALL.map(|other| (other, other.listing(&node)));
            let right = listings.iter().all(|(other, text)| text.is_empty() == (*other != engine));
            if right { Ok(()) } else { Err(format!("{listings:#?}")) }
        });
        let seen = source_seen_by(pod.namespace(), &outside, address).unwrap();
        assert_eq!(seen, IpAddr::V4(cluster.node(1).address()), "{engine:?}");
        go_on(300);
    }
    let report = flow.finish().unwrap();
    println!("{report}");
    assert_eq!(report.lost(), 0, "{report}");
    assert_eq!(foreign_rules(&node), foreign);
}

#[test]
fn outer_packets_are_not_masqueraded_for_the_mark_of_inner_ones_with_nftables() {
    sandboxed(|| outer_packets_are_not_masqueraded(RuleEngine::Nftables, "iptables-nft"));
}

#[test]
fn outer_packets_are_not_masqueraded_for_the_mark_of_inner_ones_with_iptables() {
    sandboxed(|| outer_packets_are_not_masqueraded(RuleEngine::IptablesNft, "iptables-nft"));
}

#[test]
fn outer_packets_are_not_masqueraded_for_the_mark_of_inner_ones_with_the_older_tables() {
    sandboxed(|| outer_packets_are_not_masqueraded(RuleEngine::IptablesLegacy, "iptables-legacy"));
}

fn outer_packets_are_not_masqueraded(engine: RuleEngine, iptables: &'static str) {
    let mut cluster = Cluster::unconfigured(2, Store::any());
    cluster.store().configure(&engine.network());
    cluster.nodes().iter().for_each(|node| engine.prepare(node.namespace()));
    // Without any rules of flanneld, kube-proxy's masquerade both.
    cluster.start_with(1, &["--ip-masq=false", "--iptables-forward-rules=false"]);
    cluster.start(2);
    [1, 2].into_iter().for_each(|number| cluster.wait_until_ready(number));
    cluster.wait_for_peers();
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let (client, server) = (&pods[0], &pods[1]);
    plant_service(cluster.node(1).namespace(), iptables, server.address());
    let node = cluster.node(1).namespace().clone();
    let [outer, inner] = use_service(&node, iptables, client, server);
    assert!(outer > 0 && inner > 0, "{engine:?}: {outer} outer and {inner} inner packets");

    cluster.stop(1);
    cluster.start(1);
    cluster.wait_until_ready(1);
    cluster.wait_for_peers();
    let [outer, inner] = use_service(&node, iptables, client, server);
    assert!(outer == 0 && inner > 0, "{engine:?}: {outer} outer and {inner} inner packets");
}

#[test]
fn outer_packets_of_the_udp_backend_are_not_masqueraded_for_the_mark_of_inner_ones() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(2, Store::Directory);
        cluster.store().configure(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}"#);
        // A program sends them, so that no rule of flanneld is needed.
        cluster.start_with(1, &["--ip-masq=false", "--iptables-forward-rules=false"]);
        cluster.start(2);
        [1, 2].into_iter().for_each(|number| cluster.wait_until_ready(number));
        cluster.wait_for_peers();
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let node = cluster.node(1).namespace();
        plant_service(node, "iptables-nft", pods[1].address());
        let [outer, inner] = use_service(node, "iptables-nft", &pods[0], &pods[1]);
        assert!(outer == 0 && inner > 0, "{outer} outer and {inner} inner packets");
    });
}

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// What kube-proxy makes for a service with one pod whose clients shall be masqueraded, but that it
/// counts the packets of tunnels apart.
fn plant_service(node: &Namespace, iptables: &str, pod: Ipv4Addr) {
    let masquerade = "-m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully";
    for rule in [
        "-N KUBE-MARK-MASQ".to_owned(),
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000".to_owned(),
        format!("-A PREROUTING -d {SERVICE}/32 -j KUBE-MARK-MASQ"),
        format!("-A PREROUTING -d {SERVICE}/32 -p tcp -j DNAT --to-destination {pod}"),
        format!("-I POSTROUTING -p udp {masquerade}"),
        format!("-I POSTROUTING -p tcp {masquerade}"),
    ] {
        run(node, &format!("{iptables} -t nat {rule}"));
    }
}

/// Connects to the service some times, and returns how many packets of the tunnel and how many of
/// pods were masqueraded for it.
fn use_service(node: &Namespace, iptables: &str, client: &Pod, server: &Pod) -> [u64; 2] {
    run(node, &format!("{iptables} -t nat -Z POSTROUTING"));
    let address = server.address();
    let listener = server.namespace().inside(move || TcpListener::bind((address, 0)));
    let port = listener.and_then(|l| Ok((l.local_addr()?.port(), l)));
    let (port, _listener) = port.expect("the port is free");
    for _ in 0..8 {
        let connect = move || TcpStream::connect_timeout(&(SERVICE, port).into(), wait::PATIENCE);
        client.namespace().inside(connect).expect("the service answers");
    }
    let saved = run(node, &format!("{iptables}-save -c -t nat"));
    ["udp", "tcp"].map(|protocol| {
        let masquerades = format!("] -A POSTROUTING -p {protocol} ");
        let line = saved.lines().find(|line| line.contains(&masquerades));
        let packets = line.and_then(|line| line.strip_prefix('[')?.split(':').next()?.parse().ok());
        packets.unwrap_or_else(|| panic!("{saved}"))
    })
}

/// Rules of others in every engine, with names like ours among them.
fn plant_foreign_rules(node: &Namespace) {
    for iptables in ["iptables-nft", "iptables-legacy"] {
        run(node, &format!("{iptables} -t nat -N FLANNELISH"));
        run(node, &format!("{iptables} -t nat -A FLANNELISH -d 203.0.113.9 -j RETURN"));
        run(node, &format!("{iptables} -t nat -A POSTROUTING -j FLANNELISH"));
        run(node, &format!("{iptables} -A FORWARD -s 203.0.113.9 -j DROP"));
    }
    // The default variant holds more, so that it is the one in use.
    run(node, "iptables-nft -A FORWARD -s 203.0.113.10 -j DROP");
    run(node, "nft add table ip flannel-else");
    run(node, "nft add chain ip flannel-else forward { type filter hook forward priority 5; }");
    run(node, "nft add rule ip flannel-else forward ip saddr 203.0.113.9 drop");
}

fn foreign_rules(node: &Namespace) -> Vec<String> {
    let listings = [
        run(node, "iptables-nft-save -t nat"),
        run(node, "iptables-nft-save -t filter"),
        run(node, "iptables-legacy-save -t nat"),
        run(node, "iptables-legacy-save -t filter"),
        run(node, "nft list table ip flannel-else"),
    ];
    let lines = listings.iter().flat_map(|listing| listing.lines());
    let foreign = lines.filter(|line| !line.starts_with(['#', ':']) && !line.contains("FLANNEL-"));
    foreign.map(str::to_owned).collect()
}

#[test]
fn forward_policy_of_iptables_is_got_past() {
    sandboxed(|| {
        let cluster = Cluster::with_rules_in(RuleEngine::IptablesNft, 2, Store::any());
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        for node in cluster.nodes() {
            run(node.namespace(), "iptables-nft -P FORWARD DROP");
        }
        for (from, to) in pod::pairs(&pods) {
            ping(from.namespace(), to.address()).expect("the pods' packets are accepted");
        }
        // The rules are what lets them pass.
        run(cluster.node(1).namespace(), "iptables-nft -I FLANNEL-FWD -j DROP");
        let (from, to) = (&pods[0], &pods[1]);
        wait::until("the foreign rule is removed and packets pass again", || {
            let rules = run(cluster.node(1).namespace(), "iptables-nft -S FLANNEL-FWD");
            if rules.contains("DROP") { Err(rules) } else { Ok(()) }
        });
        ping(from.namespace(), to.address()).expect("the pods' packets are accepted");
    });
}

#[test]
fn rules_come_back_in_nftables() {
    sandboxed(|| come_back(RuleEngine::Nftables, &["nft flush ruleset"]));
}

#[test]
fn rules_come_back_in_iptables() {
    let damages = [
        "nft flush ruleset",
        "iptables-nft -t nat -F",
        "iptables-nft -D FORWARD -m comment --comment flanneld\u{a0}forward -j FLANNEL-FWD",
        "iptables-nft -F FLANNEL-FWD",
    ];
    sandboxed(move || come_back(RuleEngine::IptablesNft, &damages));
}

#[test]
fn rules_come_back_in_the_older_tables_of_iptables() {
    let damages = ["iptables-legacy -t nat -F", "iptables-legacy -F FORWARD"];
    sandboxed(move || come_back(RuleEngine::IptablesLegacy, &damages));
}

/// The kernel has no table `raw` for iptables: what needs it is left out, and told.
#[test]
fn without_the_table_raw_all_other_rules_are_there_and_come_back() {
    sandboxed(|| {
        let cluster = Cluster::new(1, Store::Directory);
        let node = cluster.node(1).namespace().clone();
        let legacy = RuleEngine::IptablesLegacy;
        legacy.prepare(&node);
        let restore = "#!/bin/sh\ninput=$(cat)\ncase \"$input\" in *'*raw'*)\n\
            echo \"can't initialize iptables table 'raw'\" >&2; exit 3;;\nesac\n\
            echo \"$input\" | exec /usr/sbin/iptables-legacy-restore \"$@\"\n";
        fs::create_dir("/run/programs").unwrap();
        fs::write("/run/programs/iptables-legacy-restore", restore).unwrap();
        run(&node, "chmod +x /run/programs/iptables-legacy-restore");
        let path = format!("/run/programs:{}", std::env::var("PATH").unwrap());
        let mut command = cluster.flanneld_command(1);
        let command = command.arg("--iptables-resync=1").env("PATH", path);
        let flanneld = Daemon::start("flanneld", command);
        wait::until("the node is ready, with all rules but one", || {
            let rules = legacy.listing(&node);
            let is_ready = cluster.node(1).subnet_file().is_some();
            let are_there = ["FLANNEL-FWD", "FLANNEL-POSTRTG"].map(|chain| rules.contains(chain));
            if is_ready && are_there == [true; 2] { Ok(()) } else { Err(flanneld.log()) }
        });
        let rules = legacy.listing(&node);
        assert!(!rules.contains("FLANNEL-OUTPUT"), "{rules}");
        run(&node, "iptables-legacy -t nat -F");
        wait::until("the rules are back", || {
            let now = legacy.listing(&node);
            if now == rules { Ok(()) } else { Err(now) }
        });
        let log = flanneld.log();
        let told = "keep the mark of kube-proxy and may be masqueraded, too: \
            /run/programs/iptables-legacy-restore ended with exit status: 3: can't initialize \
            iptables table 'raw'";
        assert_eq!(log.matches(told).count(), 1, "{log}");
    });
}

/// Does each damage in turn, and expects the rules back.
fn come_back(engine: RuleEngine, damages: &[&str]) {
    let mut cluster = Cluster::unconfigured(1, Store::any());
    cluster.store().configure(&engine.network());
    let node = cluster.node(1).namespace().clone();
    engine.prepare(&node);
    cluster.start_with(1, &["--iptables-resync=1"]);
    cluster.wait_until_ready(1);
    let before = engine.listing(&node);
    for damage in damages {
        run(&node, damage);
        let start = Instant::now();
        wait::until("the rules are back", || {
            let now = engine.listing(&node);
            if now == before { Ok(()) } else { Err(now) }
        });
        println!("{damage}: healed in {:.0?}", start.elapsed());
    }
}

#[test]
fn what_is_excepted_is_not_masqueraded() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::any());
        let except = format!("--ip-masq-except={}/32", Underlay::address(200));
        for engine in [RuleEngine::Nftables, RuleEngine::IptablesNft] {
            cluster.store().configure(&engine.network());
            cluster.start_with(1, &[&except, "--ip-masq-except=2001:db8::/32"]);
            cluster.wait_until_ready(1);
            let rules = engine.listing(cluster.node(1).namespace());
            assert!(rules.contains("198.51.100.200") && !rules.contains("2001:db8"), "{rules}");
            cluster.stop(1);
        }
        let (outside, address, pod) = outside(&cluster);
        outside.ip(&format!("route add 10.244.0.0/16 via {}", cluster.node(1).address()));
        let seen = source_seen_by(pod.namespace(), &outside, address).unwrap();
        assert_eq!(seen, IpAddr::V4(pod.address()));
    });
}

#[test]
fn absent_programs_are_named_and_waited_for_or_done_without() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(1, Store::any());
        let hidden = ["/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"];
        // Shared, so that a flanneld that runs sees them come back.
        mount(&["--bind", "/usr/sbin", "/usr/sbin"]);
        mount(&["--make-shared", "/usr/sbin"]);
        let hide = || hidden.iter().for_each(|path| mount(&["--bind", "/dev/null", path]));
        hide();
        let demanded = RuleEngine::IptablesNft.network();
        cluster.store().configure(&demanded.replace("\"EnableNFTables\": false,", ""));
        cluster.start(1);
        cluster.wait_until_ready(1);
        let log = cluster.flanneld(1).log();
        assert!(log.contains("engine=nftables"), "{log}");
        assert!(log.contains("EnableNFTables is not set, and iptables is not installed"), "{log}");
        cluster.stop(1);

        cluster.store().configure(&demanded);
        cluster.start(1);
        cluster.wait_until_ready(1);
        let log = cluster.flanneld(1).log();
        assert!(log.contains("EnableNFTables is false, but iptables is not installed"), "{log}");
        let node = cluster.node(1).namespace().clone();
        assert_ne!(RuleEngine::Nftables.listing(&node), "");
        cluster.stop(1);
        let install = || hidden.map(|path| program::run(program::installed("umount").arg(path)));
        install();
        cluster.start(1);
        cluster.wait_until_ready(1);
        assert!(RuleEngine::IptablesNft.listing(&node).contains("FLANNEL-POSTRTG"));
        assert_eq!(RuleEngine::Nftables.listing(&node), "");

        hide();
        run(&node, "nft flush chain ip nat FLANNEL-POSTRTG");
        let advice = "install the package iptables, or set EnableNFTables to true";
        wait::until("the programs are missed", || {
            let log = cluster.flanneld(1).log();
            if log.contains(advice) { Ok(()) } else { Err(log) }
        });
        install();
        wait::until_true("the rules are back", || {
            RuleEngine::IptablesNft.listing(&node).contains("MASQUERADE")
        });
    });
}

#[test]
fn packets_to_a_pod_that_is_not_there_vanish_where_there_is_no_bridge() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::any());
        let node = cluster.node(1).namespace().clone();
        node.ip("route add blackhole 10.244.177.0/24");
        cluster.start_with(1, &["--ip-blackhole-route"]);
        cluster.wait_until_ready(1);
        let subnet = cluster.node(1).subnet_file_value("FLANNEL_SUBNET").unwrap();
        let absent = subnet.replace(".1/24", ".99");
        assert!(node.try_ip(&format!("route get {absent}")).is_err());
        node.ip(&format!("route del blackhole {}", subnet.replace(".1/24", ".0/24")));
        wait::until("the blackhole is back", || {
            match node.try_ip(&format!("route get {absent}")) {
                Ok(route) => Err(route),
                Err(_) => Ok(()),
            }
        });
        // The bridge of the pods counts more.
        let pod = pod::attach_to_each(cluster.nodes(), 1).remove(0);
        ping(&node, pod.address()).expect("the pod is there");
        cluster.stop(1);
        cluster.start(1);
        cluster.wait_until_ready(1);
        assert_eq!(node.ip("route show type blackhole").trim(), "blackhole 10.244.177.0/24");
    });
}

fn mount(arguments: &[&str]) {
    program::run(program::installed("mount").args(arguments));
}
