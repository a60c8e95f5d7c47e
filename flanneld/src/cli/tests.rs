//! The command line by the rules of Go.

use super::*;

fn parse_words(words: &str, environment: &[(&str, &str)]) -> Result<Options, UsageError> {
    let lookup = |name: &str| {
        environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
    };
    match parse(words.split_whitespace().map(str::to_owned), lookup)? {
        Command::Run(options) => Ok(*options),
        other => panic!("{other:?}"),
    }
}

fn etcd(options: Options) -> EtcdOptions {
    match options.store {
        StoreOptions::Etcd(etcd) => etcd,
        StoreOptions::Directory { .. } | StoreOptions::Kube(_) => panic!("not etcd"),
    }
}

#[test]
fn defaults_are_those_of_flannel() {
    let options = parse_words("", &[]).unwrap();
    assert_eq!(options.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(options.renew_margin, Duration::from_secs(3600));
    let rules = RuleOptions { random_fully: true, forward: true, ..RuleOptions::default() };
    assert_eq!((options.ip_masq, &options.rules), (false, &rules));
    assert_eq!(options.health, None);
    let etcd = etcd(options);
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(etcd.prefix, "/coreos.com/network");
    assert!(etcd.user.is_none());
}

#[test]
fn every_spelling_of_a_flag_is_understood() {
    for words in ["-etcd-prefix=/x", "--etcd-prefix=/x", "-etcd-prefix /x", "--etcd-prefix /x"] {
        assert_eq!(etcd(parse_words(words, &[]).unwrap()).prefix, "/x", "{words}");
    }
    for words in ["-ip-masq", "--ip-masq", "-ip-masq=true", "--ip-masq=T", "--ip-masq=1"] {
        assert!(parse_words(words, &[]).unwrap().ip_masq, "{words}");
    }
    assert!(!parse_words("--ip-masq=F", &[]).unwrap().ip_masq);
    assert!(!parse_words("--iptables-forward-rules=false", &[]).unwrap().rules.forward);
    let rules = parse_words("--ip-masq --ip-masq-ipv4=false", &[]).unwrap().rules;
    assert_eq!(rules.masquerade, [Family::V6]);
    let words = "--ip-masq-except 10.0.0.0/8 --ip-masq-except=fd00::1";
    let except = parse_words(words, &[]).unwrap().rules.masquerade_except;
    assert_eq!(except, ["10.0.0.0/8", "fd00::1/128"].map(|net| net.parse().unwrap()));
    let error = parse_words("--ip-masq-except=10.0.0.0/33", &[]).unwrap_err();
    assert!(error.to_string().contains("-ip-masq-except"), "{error}");
}

#[test]
fn a_switch_takes_no_separate_value_and_what_is_no_flag_ends_the_flags() {
    let options = parse_words("--ip-masq false --no-such-flag", &[]).unwrap();
    assert!(options.ip_masq);
    assert!(!parse_words("-- --ip-masq", &[]).unwrap().ip_masq);
    assert!(!parse_words("- --ip-masq", &[]).unwrap().ip_masq);
}

#[test]
fn a_list_collects_and_the_last_of_the_others_wins() {
    let options =
        parse_words("--iface=eth0 -iface eth1 --public-ip=1.1.1.1 --public-ip=2.2.2.2", &[]);
    let interface = options.unwrap().interface;
    assert_eq!(interface.names, ["eth0", "eth1"]);
    assert_eq!(interface.public_ip, Some(Ipv4Addr::new(2, 2, 2, 2)));
}

#[test]
fn numbers_are_those_of_go() {
    for (text, number) in [
        ("60", Some(60)),
        ("-1", Some(-1)),
        ("+7", Some(7)),
        ("0x3C", Some(60)),
        ("0o74", Some(60)),
        ("074", Some(60)),
        ("0b11", Some(3)),
        ("1_000", Some(1000)),
        ("0", Some(0)),
        ("", None),
        ("1.5", None),
        ("0x", None),
        ("--1", None),
        ("0x-1", None),
        ("5s", None),
    ] {
        assert_eq!(flags::parse_number(text), number, "{text}");
    }
}

#[test]
fn the_environment_fills_what_the_command_line_leaves_open() {
    let environment = [
        ("FLANNELD_ETCD_PREFIX", "/env"),
        ("FLANNELD_IFACE", "eth0,eth1"),
        ("FLANNELD_IP_MASQ", ""),
        ("FLANNELD_V", "4"),
        ("FLANNELD_HEALTHZ_PORT", "many"),
        ("FLANNELD_VERSION", "true"),
    ];
    let options = parse_words("--v=2", &environment).unwrap();
    assert_eq!(options.verbosity, 2);
    assert_eq!(options.interface.names, ["eth0,eth1"]);
    assert!(!options.ip_masq);
    assert_eq!(options.health, None);
    assert_eq!(options.ignored.len(), 1);
    assert!(options.ignored[0].contains("FLANNELD_HEALTHZ_PORT"), "{:?}", options.ignored);
    assert_eq!(etcd(options).prefix, "/env");
}

#[test]
fn bad_flags_name_what_is_wrong() {
    for (words, text) in [
        ("--subnet-dir=/x", "flag provided but not defined: -subnet-dir; see --help"),
        ("--etcd-prefix", "flag needs an argument: -etcd-prefix"),
        ("--ip-masq=maybe", "invalid value \"maybe\" for flag -ip-masq: want true or false"),
        ("--v=x", "invalid value \"x\" for flag -v: want a whole number"),
        (
            "--public-ip=fe80::1",
            "invalid value \"fe80::1\" for flag -public-ip: want an IPv4 address",
        ),
        (
            "--healthz-port=70000",
            "invalid value \"70000\" for flag -healthz-port: want at most 65535",
        ),
        (
            "--subnet-lease-renew-margin=1440",
            "invalid value \"1440\" for flag -subnet-lease-renew-margin: want minutes from 1 to 1439",
        ),
    ] {
        assert_eq!(parse_words(words, &[]).unwrap_err().to_string(), text);
    }
}

#[test]
fn a_password_is_never_shown() {
    let options = parse_words("--etcd-username=u --etcd-password=hush", &[]).unwrap();
    assert!(!format!("{options:?}").contains("hush"));
}

#[test]
fn help_and_version_come_first() {
    let none = |_: &str| None;
    for words in ["-h", "--help", "--ip-masq -help"] {
        let command = parse(words.split_whitespace().map(str::to_owned), none);
        assert!(matches!(command, Ok(Command::Help)), "{words}");
    }
    assert!(matches!(parse(["-version".to_owned()], none), Ok(Command::Version)));
    let usage = usage();
    for flag in FLAGS {
        assert!(usage.contains(&format!("--{}", flag.name)), "{} is missing", flag.name);
    }
}

#[test]
fn flags_of_kubernetes_are_those_of_flannel() {
    let kube = |words: &str| match parse_words(words, &[]).map(|options| options.store) {
        Ok(StoreOptions::Kube(kube)) => Ok(kube),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    };
    let stock = kube("--ip-masq --kube-subnet-mgr").unwrap();
    assert_eq!((stock.api_url, stock.kubeconfig), (None, None));
    assert_eq!(stock.net_config.to_str(), Some("/etc/kube-flannel/net-conf.json"));
    assert!(stock.sets_condition);
    let other = kube(
        "-kube-subnet-mgr=true --kube-api-url https://a:6443 --kubeconfig-file=/k \
         --set-node-network-unavailable=false --net-config-path=/n --subnet-file=/s",
    )
    .unwrap();
    assert_eq!(other.api_url.as_deref(), Some("https://a:6443"));
    assert_eq!(other.kubeconfig.as_deref(), Some(std::path::Path::new("/k")));
    assert!(!other.sets_condition);
    let error = kube("--kube-subnet-mgr --kube-annotation-prefix=nodot").unwrap_err();
    assert!(error.starts_with("invalid value \"nodot\" for flag -kube-annotation-prefix: want"));
}

#[test]
fn a_configuration_to_install_comes_with_its_source() {
    let install = |words: &str| parse_words(words, &[]).map(|options| options.cni_conf);
    assert_eq!(install("--cni-conf=/a"), Ok(None));
    let conf = install("--cni-conf-install=/etc/cni/net.d/10-flannel.conflist").unwrap().unwrap();
    assert_eq!(conf.source.to_str(), Some("/etc/kube-flannel/cni-conf.json"));
}

#[test]
fn cleanup_does_nothing_when_it_is_not_understood() {
    let words = |text: &str| {
        let arguments = text.split_whitespace().map(str::to_owned);
        match parse(arguments, |_| None) {
            Ok(Command::Cleanup(cleanup)) => Ok((cleanup.dry_run, cleanup.force)),
            other => Err(format!("{other:?}")),
        }
    };
    assert_eq!(words("cleanup"), Ok((false, false)));
    assert_eq!(words("cleanup --force -dry-run --subnet-file /x"), Ok((true, true)));
    for wrong in ["cleanup all", "cleanup --dryrun", "cleanup --subnet-file", "cleanup -h"] {
        assert!(words(wrong).is_err(), "{wrong}");
    }
}
