//! podman, which runs containers without a daemon: in a sandbox with the users of the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::program;

const CONFIGURATION: &str = "/run/containers.conf";

/// podman with its containers and images in `/run`, and its networks by CNI.
#[derive(Debug)]
pub struct Podman(());

impl Podman {
    /// Makes the configuration; the plugins for networks are in the directory `plugins`.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn new(plugins: &str) -> Self {
        let text = format!(
            r#"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "/etc/cni/net.d"
default_network = "cbr0"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[containers]
log_driver = "k8s-file"
"#
        );
        fs::write(CONFIGURATION, text).expect("/run is ours");
        Self(())
    }

    /// A command with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::installed("podman");
        command.env("CONTAINERS_CONF", CONFIGURATION);
        command.args(["--root", "/run/podman", "--runroot", "/run/podman-run"]);
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command
    }

    /// Runs it to its end and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        program::run(&mut self.command(arguments))
    }

    /// Loads an image out of an archive.
    ///
    /// # Panics
    /// If it is none.
    pub fn load(&self, archive: &Path) {
        program::run(self.command(&["load", "--quiet", "--input"]).arg(archive));
    }
}
