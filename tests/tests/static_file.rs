//! The plugin as it is installed: one static file, which needs nothing of the system that it is on.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::{program, runtime};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

/// What `make plugin` builds, which `make test` does first.
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/dist/flannel");

fn built() -> Vec<u8> {
    fs::read(BUILT).unwrap_or_else(|error| panic!("{BUILT}: {error}; build it: make plugin"))
}

/// The number of `size` bytes, as the processor writes them, at an offset.
fn number(file: &[u8], offset: usize, size: usize) -> usize {
    let bytes = file[offset..offset + size].iter().rev();
    bytes.fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// The segments of a program with their content, each by its type (`elf(5)`, `Elf64_Phdr`).
fn segments(file: &[u8]) -> Vec<(usize, &[u8])> {
    assert_eq!(file[..6], *b"\x7fELF\x02\x01", "a program of 64 bits, little end first");
    let (table, size, count) = (number(file, 32, 8), number(file, 54, 2), number(file, 56, 2));
    let segment = |place: usize| {
        let start = number(file, place + 8, 8);
        (number(file, place, 4), &file[start..start + number(file, place + 32, 8)])
    };
    (0..count).map(|place| segment(table + place * size)).collect()
}

/// What the dynamic linker would have to do: the tags of a dynamic segment (`Elf64_Dyn`).
fn dynamic_tags(segments: &[(usize, &[u8])]) -> Vec<usize> {
    const PT_DYNAMIC: usize = 2;
    let dynamic = segments.iter().filter(|(kind, _)| *kind == PT_DYNAMIC);
    dynamic.flat_map(|(_, entries)| entries.chunks(16).map(|entry| number(entry, 0, 8))).collect()
}

#[test]
fn it_is_small_and_needs_no_library() {
    const SIZE_MAX: usize = 3_000_000;
    const PT_INTERP: usize = 3;
    const DT_NEEDED: usize = 1;
    let is_linked = |file: &[u8]| {
        let segments = segments(file);
        let interpreted = segments.iter().any(|(kind, _)| *kind == PT_INTERP);
        (interpreted, dynamic_tags(&segments).contains(&DT_NEEDED))
    };
    let plugin = built();
    assert_eq!(is_linked(&plugin), (false, false));
    assert!(plugin.len() <= SIZE_MAX, "{} bytes", plugin.len());
    // The test knows what a library looks like: it needs some itself.
    assert_eq!(is_linked(&fs::read("/proc/self/exe").unwrap()), (true, true));
}

const ROOT: &str = "/run/root";
const SUBNET_FILE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
                           FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A root with the plugin and nothing else but what it works on.
fn make_root() -> Namespace {
    let root = |path: &str| Path::new(ROOT).join(path);
    for directory in ["proc", "run/flannel", "run/netns"] {
        fs::create_dir_all(root(directory)).unwrap();
    }
    fs::write(root("run/flannel/subnet.env"), SUBNET_FILE).unwrap();
    fs::write(root("flannel"), built()).unwrap();
    program::run(program::installed("chmod").args(["755", &format!("{ROOT}/flannel")]));
    for name in ["bridge", "portmap", "loopback"] {
        symlink("flannel", root(name)).unwrap();
    }
    let pod = Namespace::create("pod");
    let bind = |from: &Path, to: &str| {
        let none: Option<&str> = None;
        mount(Some(from), &root(to), none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
    };
    bind(Path::new("/proc"), "proc");
    fs::write(root("run/netns/pod"), "").unwrap();
    bind(&pod.path(), "run/netns/pod");
    pod
}

fn call(plugin: &str, verb: &str, conf: &Value) -> Output {
    let mut command: Command = program::installed("chroot");
    command
        .args([ROOT, &format!("/{plugin}")])
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "one")
        .env("CNI_NETNS", "/run/netns/pod")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin");
    let output = runtime::feed(&mut command, &conf.to_string());
    assert!(output.status.success(), "{}", program::describe(&command, &output));
    output
}

fn add(plugin: &str, conf: &mut Value) {
    conf["prevResult"] = serde_json::from_slice(&call(plugin, "ADD", conf).stdout).unwrap();
}

#[test]
fn it_runs_in_an_empty_root() {
    sandboxed(|| {
        let pod = make_root();
        let conf = |plugin: &str| json!({"cniVersion": "1.1.0", "name": "cbr0", "type": plugin});
        let version: Value =
            serde_json::from_slice(&call("flannel", "VERSION", &Value::Null).stdout).unwrap();
        assert_eq!(version["supportedVersions"].as_array().unwrap().len(), 7);

        let mut flannel = conf("flannel");
        flannel["delegate"] = json!({"isDefaultGateway": true, "ipMasq": true});
        let rate = json!({"IngressRate": 8_000_000, "IngressBurst": 80_000});
        let port = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"}]);
        flannel["capabilities"] = json!({"portMappings": true, "bandwidth": true});
        flannel["runtimeConfig"] = json!({"portMappings": port, "bandwidth": rate});
        call("flannel", "STATUS", &flannel);
        add("flannel", &mut flannel);
        assert!(pod.ip("address show dev eth0").contains("10.1.2.2/24"));
        call("flannel", "CHECK", &flannel);
        call("flannel", "DEL", &flannel);
        flannel["cni.dev/valid-attachments"] = json!([]);
        call("flannel", "GC", &flannel);
        assert!(!pod.ip("link show").contains("eth0"));

        let mut bridge = conf("bridge");
        bridge["ipam"] = json!({"type": "host-local", "subnet": "10.1.2.0/24"});
        add("bridge", &mut bridge);
        let mut portmap = conf("portmap");
        portmap["prevResult"] = bridge["prevResult"].clone();
        portmap["runtimeConfig"] = json!({"portMappings": port});
        add("portmap", &mut portmap);
        call("portmap", "CHECK", &portmap);
        call("portmap", "DEL", &portmap);
        call("bridge", "DEL", &bridge);
        assert!(!pod.ip("link show").contains("eth0"));
        call("loopback", "ADD", &conf("loopback"));
    });
}
