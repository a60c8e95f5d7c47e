//! containerd, and an image with a web server for it. It needs root, in a sandbox that has the users
//! and the control groups of the machine.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::{program, wait};

/// Where it listens.
pub const SOCKET: &str = "/run/containerd.sock";
/// The image, which also serves as the one that holds a pod's namespaces.
pub const IMAGE: &str = "localhost/pod:test";
/// Serves `/run/rootfs/etc/greeting` on port 80.
pub const SERVER: [&str; 6] = ["/bin/httpd", "-f", "-p", "80", "-h", "/etc"];
/// What the server says.
pub const GREETING: &str = "hello from the pod\n";

/// Names a directory with another containerd than the installed one.
const PROGRAMS: &str = "TEST_CONTAINERD";

/// Whether this is another containerd than the installed one, and of version 2: from then on it asks for
/// the status of a network. `tests/requirements.sh newer` unpacks one into `target/suites/sid/usr/bin`.
pub fn asks_for_status() -> bool {
    env::var_os(PROGRAMS).is_some()
}

fn installed(program: &str) -> Command {
    let Some(directory) = env::var_os(PROGRAMS) else { return program::installed(program) };
    let mut command = Command::new(Path::new(&directory).join(program));
    command.env("PATH", [directory, program::search_path()].join(OsStr::new(":")));
    command
}

/// Starts it with its data in `/run`, with or without what kubelet talks to.
///
/// # Panics
/// If it does not answer.
pub fn start(cri: bool) -> Daemon {
    let disabled = if cri { "" } else { "\"io.containerd.grpc.v1.cri\"" };
    let config = format!(
        r#"version = 2
root = "/run/containerd-root"
state = "/run/containerd-state"
disabled_plugins = [{disabled}]
[grpc]
 address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
 sandbox_image = "{IMAGE}"
 restrict_oom_score_adj = true
 [plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
 [plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
"#
    );
    fs::write("/run/containerd.toml", config).expect("/run is ours");
    let mut command = installed("containerd");
    let daemon = Daemon::start("containerd", command.args(["-c", "/run/containerd.toml"]));
    wait::until_true("containerd answers", || {
        program::outcome(&mut ctr(&["version"])).status.success()
    });
    daemon
}

/// A command of its own client.
pub fn ctr(arguments: &[&str]) -> Command {
    let mut command = installed("ctr");
    command.args(["--address", SOCKET, "--namespace", "k8s.io"]).args(arguments);
    command
}

/// Makes `/run/rootfs`: a root with busybox and a greeting.
///
/// # Panics
/// If busybox is missing.
pub fn make_root_filesystem() {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(Path::new("/run/rootfs").join(directory)).expect("/run is ours");
    }
    let busybox =
        program::find("busybox").unwrap_or_else(|| panic!("{}", program::missing("busybox")));
    fs::copy(busybox, "/run/rootfs/bin/busybox").expect("/run is ours");
    for name in ["sh", "httpd", "sleep"] {
        symlink("busybox", Path::new("/run/rootfs/bin").join(name)).expect("/run is ours");
    }
    fs::write("/run/rootfs/etc/greeting", GREETING).expect("/run is ours");
}

/// Makes an image that serves out of that root, and gives it to containerd.
///
/// # Panics
/// If it cannot be made.
pub fn import_image() {
    let sh = |script: &str| program::run(program::installed("sh").args(["-ec", script]));
    let layer = sh("mkdir -p /run/image; tar -C /run/rootfs -cf /run/image/layer.tar .; \
                    sha256sum /run/image/layer.tar | cut -d' ' -f1");
    let command = serde_json::to_string(&SERVER).expect("texts encode");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    // As `docker save` writes it.
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Cmd":{command}}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        layer.trim()
    );
    fs::write("/run/image/config.json", config).expect("/run is ours");
    let manifest =
        format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]"#);
    fs::write("/run/image/manifest.json", manifest).expect("/run is ours");
    sh("tar -C /run/image -cf /run/image.tar manifest.json config.json layer.tar");
    // Later ones unpack by a service that knows one snapshotter only, unless told not to.
    let by_itself = asks_for_status().then_some("--local");
    let arguments = ["--snapshotter", "native", "/run/image.tar"];
    program::run(ctr(&["images", "import"]).args(by_itself).args(arguments));
}

/// What the server says at an address, if there is one.
pub fn greeting(address: SocketAddr) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /greeting HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}
