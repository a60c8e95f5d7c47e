//! A node: a host on the underlay with directories of its own where the programs expect theirs.

#![expect(unsafe_code, reason = "namespaces are entered between fork and exec")]

use std::ffi::CString;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::namespace::Namespace;
use crate::program;
use crate::underlay::Underlay;

/// The directories that each node has for itself.
const OWN_DIRECTORIES: [&str; 4] =
    ["/run/flannel", "/var/lib/cni", "/etc/cni/net.d", "/etc/kube-flannel"];

/// A node of a cluster; a clone is the same node.
#[derive(Clone, Debug)]
pub struct Node {
    number: u8,
    namespace: Namespace,
}

impl Node {
    /// Makes node `n<number>` with the addresses 198.51.100.`<number>` and fd99::`<number>`.
    ///
    /// # Panics
    /// If its directories cannot be made.
    pub fn create(underlay: &Underlay, number: u8) -> Self {
        let node = Self { number, namespace: underlay.host(&format!("n{number}"), number) };
        for directory in OWN_DIRECTORIES {
            fs::create_dir_all(directory).expect("the sandbox has all of them writable");
            fs::create_dir_all(node.directory(directory)).expect("/run is ours");
        }
        node
    }

    /// Its number, from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its name, which is also that of its network namespace.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        Underlay::address(self.number)
    }

    /// Its IPv6 address on the underlay.
    pub fn address6(&self) -> Ipv6Addr {
        Underlay::address6(self.number)
    }

    /// Runs `ip` in the node's network namespace and returns its output.
    ///
    /// # Panics
    /// If `ip` fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        self.namespace.ip(arguments)
    }

    /// Runs `bridge` in the node's network namespace and returns its output.
    ///
    /// # Panics
    /// If `bridge` fails.
    #[track_caller]
    pub fn bridge(&self, arguments: &str) -> String {
        self.namespace.bridge(arguments)
    }

    /// Where the sandbox sees a directory or file that the node's programs see at `path`.
    pub fn directory(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let own = OWN_DIRECTORIES.iter().any(|own| path.starts_with(own));
        if !own {
            return path.to_owned();
        }
        let relative = path.strip_prefix("/").expect("paths are absolute");
        Path::new("/run/nodes").join(self.name()).join(relative)
    }

    /// Reads a file at the path where the node's programs see it.
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.directory(path)).ok()
    }

    /// Demands that flanneld has made nothing here: no device, no subnet file, no rules.
    ///
    /// # Panics
    /// If there is something.
    #[track_caller]
    pub fn assert_untouched(&self) {
        let links = self.ip("link show");
        assert!(!links.contains("flannel"), "{links}");
        assert_eq!(self.subnet_file(), None);
        let rules = program::run(self.namespace().command("nft").args(["list", "ruleset"]));
        assert_eq!(rules, "");
    }

    /// The subnet file that flanneld has written, if it has.
    pub fn subnet_file(&self) -> Option<String> {
        self.read("/run/flannel/subnet.env")
    }

    /// One value of the subnet file, such as that of `FLANNEL_SUBNET`.
    pub fn subnet_file_value(&self, key: &str) -> Option<String> {
        let text = self.subnet_file()?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.to_owned())
    }

    /// A command that runs on this node: in its network namespace, with its own directories,
    /// and with nothing of the caller's environment but where programs are.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().env("PATH", program::search_path());
        let namespace = self.namespace.open();
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no zero bytes");
        let binds = OWN_DIRECTORIES.map(|own| (text(&self.directory(own)), text(Path::new(own))));
        let enter = move || {
            let none: Option<&str> = None;
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Slave: a pod's namespace that is unmounted outside goes away in here too; a copy
            // of the mount in a long-running flanneld would keep the pod's network alive.
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
            for (own, seen) in &binds {
                let (own, seen) = (own.as_c_str(), seen.as_c_str());
                mount(Some(own), seen, none, MsFlags::MS_BIND, none)?;
            }
            // What /sys/class/net shows is decided when it is mounted.
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
            Ok(())
        };
        // SAFETY: the closure makes system calls and does not allocate.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// A command for an installed program that runs on this node.
    pub fn installed(&self, program: &str) -> Command {
        let path =
            program::find(program).unwrap_or_else(|| panic!("{}", program::missing(program)));
        self.command(path)
    }
}
