//! `flannel uninstall DIRECTORY`: removes from a node what pods left there and what `install` put
//! there.
//!
//! What attachments left goes as it would by a GC that lists none; then the bridge goes, unless
//! others are on it, and the files. Everything is a step that prints as the command that would do
//! the same, so that it can be looked at first. Tables of nftables that the reference plugins use
//! too stay, without rules of ours.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fabric::link_name::LinkName;
use fabric::netlink::{NetlinkError, Socket, aliases, apply, observe, ports};
use fabric::netstate::{LinkKind, NetState};
use fabric::plan::diff;
use serde_json::{Map, Value, json};

use crate::attachment::of_alias;
use crate::command::del::Remains;
use crate::invocation::Id;
use crate::ipam::held::Giver;
use crate::ipam::store::Store;
use crate::kernel::links;
use crate::netconf::NetConf;
use crate::plugin::Plugin;
use crate::process::{self, Outcome};
use crate::state::{State, StateFile};

/// How to call it.
pub const USAGE: &str = "usage: flannel uninstall DIRECTORY [--conf=FILE] [--dry-run] [--force]";

/// The list that flannel's manifest and ours install.
const CONFIGURATION: &str = "/etc/cni/net.d/10-flannel.conflist";

/// What to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uninstall {
    directory: PathBuf,
    conf: PathBuf,
    dry_run: bool,
    force: bool,
}

/// Why nothing is removed, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The arguments make no sense.
    #[error("{USAGE}")]
    Usage,
    /// The list of plugins cannot be read, so that nobody knows where pods left something.
    #[error("{} is no list of CNI plugins", .0.display())]
    NoList(PathBuf),
    /// Somebody still needs it.
    #[error(
        "{} pods are attached, such as {}; drain the node first, or give --force",
        .0.len(), .0.first().map_or("", String::as_str)
    )]
    Attached(BTreeSet<String>),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The rest was removed.
    #[error("something is left:\n{}", .0.join("\n"))]
    Left(Vec<String>),
}

impl Uninstall {
    /// Reads the arguments behind `uninstall`.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn parse(arguments: &[String]) -> Result<Self, UninstallError> {
        let (flags, directories): (Vec<_>, Vec<_>) =
            arguments.iter().partition(|argument| argument.starts_with('-'));
        let [directory] = directories[..] else { return Err(UninstallError::Usage) };
        let conf = CONFIGURATION.into();
        let mut uninstall =
            Self { directory: directory.into(), conf, dry_run: false, force: false };
        for flag in flags {
            match (flag.as_str(), flag.strip_prefix("--conf=")) {
                ("--dry-run", _) => uninstall.dry_run = true,
                ("--force", _) => uninstall.force = true,
                (_, Some(conf)) => uninstall.conf = conf.into(),
                _ => return Err(UninstallError::Usage),
            }
        }
        Ok(uninstall)
    }

    /// Removes what `program` made and put there, and returns the commands that would do the same.
    ///
    /// # Errors
    /// If pods are attached, or if something cannot be removed; the rest is removed all the same.
    pub fn run(&self, program: &Path) -> Result<String, UninstallError> {
        let network = Network::of_list(&self.conf)?;
        let mut host = Socket::open().map_err(NetlinkError::from)?;
        let attached = network.attached(&mut host)?;
        if !self.dry_run && !self.force && !attached.is_empty() {
            return Err(UninstallError::Attached(attached));
        }
        let (mut commands, mut failures) = (String::new(), Vec::new());
        for step in self.steps(&network, &mut host, program)? {
            commands += &format!("{step}\n");
            if !self.dry_run {
                failures.extend(step.run(&mut host).err());
            }
        }
        if failures.is_empty() { Ok(commands) } else { Err(UninstallError::Left(failures)) }
    }

    /// The runtime is told first that there is no network any more, so that it starts no pod.
    fn steps(
        &self,
        network: &Network,
        host: &mut Socket,
        program: &Path,
    ) -> Result<Vec<Step>, UninstallError> {
        let mut steps = Vec::new();
        steps.extend(self.conf.exists().then(|| Step::RemoveFile(self.conf.clone())));
        for (plugin, configuration) in &network.plugins {
            let path = self.directory.join(plugin.as_str());
            steps.push(Step::Collect(*plugin, path, configuration.clone()));
        }
        steps.extend(network.bridge(host)?.map(Step::RemoveBridge));
        steps.extend(network.addresses().map(Step::RemoveAddresses));
        let kept = network.conf().data_dir;
        steps.extend(kept.is_dir().then_some(Step::RemoveDirectory(kept)));
        steps.extend(self.programs(program).into_iter().map(Step::RemoveFile));
        Ok(steps)
    }

    /// The program, if it is this one, and the names that lead to it.
    fn programs(&self, program: &Path) -> Vec<PathBuf> {
        let own = self.directory.join(Plugin::Flannel.as_str());
        let is_ours =
            fs::read(&own).is_ok_and(|there| fs::read(program).is_ok_and(|us| us == there));
        if !is_ours {
            return Vec::new();
        }
        let names = Plugin::ALL.map(|plugin| self.directory.join(plugin.as_str()));
        let leads_here = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|to| to == Path::new(Plugin::Flannel.as_str()))
        };
        names.into_iter().filter(leads_here).chain([own]).collect()
    }
}

/// One thing to do.
enum Step {
    RemoveFile(PathBuf),
    /// Everything of attachments that the runtime does not list, and it lists none.
    Collect(Plugin, PathBuf, Value),
    RemoveBridge(LinkName),
    /// The addresses of a network, of which none is taken any more.
    RemoveAddresses(Store),
    /// If nothing is left in it.
    RemoveDirectory(PathBuf),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveFile(path) => write!(f, "rm {}", path.display()),
            Self::Collect(_, path, configuration) => {
                let directory = path.parent().unwrap_or(path).display();
                let path = path.display();
                write!(f, "CNI_COMMAND=GC CNI_PATH={directory} {path} <<<'{configuration}'")
            }
            Self::RemoveBridge(bridge) => write!(f, "ip link del {bridge}"),
            Self::RemoveAddresses(store) => write!(f, "rm -r {}", store.directory().display()),
            Self::RemoveDirectory(path) => {
                write!(f, "rmdir --ignore-fail-on-non-empty {}", path.display())
            }
        }
    }
}

impl Step {
    fn run(&self, host: &mut Socket) -> Result<(), String> {
        let failed = |error: io::Error| format!("{self}: {error}");
        match self {
            Self::RemoveFile(path) => fs::remove_file(path).map_err(failed),
            Self::RemoveDirectory(path) => match fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                removed => removed.map_err(failed),
            },
            Self::RemoveAddresses(store) => match store.taken_unlocked() {
                Ok(taken) if taken.is_empty() => {
                    fs::remove_dir_all(store.directory()).map_err(failed)
                }
                Ok(taken) => Err(format!("{self}: {} addresses are taken", taken.len())),
                Err(error) => Err(error.to_string()),
            },
            Self::Collect(plugin, path, configuration) => collect(*plugin, path, configuration),
            Self::RemoveBridge(bridge) => {
                let observed =
                    observe(host, &links([*bridge])).map_err(|e| format!("{self}: {e}"))?;
                let failures = apply(host, &diff(&NetState::default(), &observed));
                failures.first().map_or(Ok(()), |failure| Err(failure.to_string()))
            }
        }
    }
}

fn collect(plugin: Plugin, path: &Path, configuration: &Value) -> Result<(), String> {
    let directory = path.parent().unwrap_or(path).display().to_string();
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some("GC".to_owned()),
        "CNI_PATH" => Some(directory.clone()),
        _ => None,
    };
    match process::run(plugin, variable, configuration.to_string().as_bytes()) {
        Outcome::Success(_) | Outcome::About(_) => Ok(()),
        Outcome::Failure(document) => Err(document),
    }
}

/// A list of plugins, as far as they are in this file.
struct Network {
    name: Id,
    /// Each with the configuration that a runtime would call it with to collect everything.
    plugins: Vec<(Plugin, Value)>,
}

impl Network {
    /// Reads a list. Where there is none any more, it is taken for flannel's own.
    fn of_list(path: &Path) -> Result<Self, UninstallError> {
        let none = || UninstallError::NoList(path.to_owned());
        let list: Value = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|_| none())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                json!({ "name": "cbr0", "plugins": [{ "type": "flannel" }] })
            }
            Err(_) => return Err(none()),
        };
        let name = list["name"].as_str().and_then(Id::new).ok_or_else(none)?;
        let plugins = list["plugins"].as_array().ok_or_else(none)?;
        let plugin = |plugin: &Value| {
            let mut configuration = plugin.as_object()?.clone();
            let kind = Plugin::named(configuration.get("type")?.as_str()?)?;
            configuration.insert("name".to_owned(), name.as_str().into());
            configuration.insert("cniVersion".to_owned(), "1.1.0".into());
            configuration.insert("cni.dev/valid-attachments".to_owned(), json!([]));
            Some((kind, configuration.into()))
        };
        let plugins: Vec<_> = plugins.iter().filter_map(plugin).collect();
        // Whatever else the list is, it is not ours to remove.
        let is_ours = plugins.iter().any(|(plugin, _)| *plugin == Plugin::Flannel);
        if is_ours { Ok(Self { name, plugins }) } else { Err(none()) }
    }

    /// What flannel makes of the network: the only plugin of the list with things of its own.
    fn conf(&self) -> NetConf {
        let flannel = self.plugins.iter().find(|(plugin, _)| *plugin == Plugin::Flannel);
        let configuration: Option<Map<_, _>> =
            flannel.and_then(|(_, configuration)| configuration.as_object().cloned());
        configuration
            .and_then(|configuration| NetConf::new(&configuration).ok())
            .unwrap_or_default()
    }

    /// The pods that have an address, a link or a kept configuration, by the name of their container
    /// or their address.
    fn attached(&self, host: &mut Socket) -> Result<BTreeSet<String>, UninstallError> {
        let kept = StateFile::all(&self.conf().data_dir, &self.name);
        let mut attached: BTreeSet<_> =
            kept.into_iter().map(|file| file.container.to_string()).collect();
        attached.extend(aliases(host)?.values().filter_map(|alias| self.container(alias)));
        if attached.is_empty()
            && let Some(store) = self.addresses()
        {
            let taken = store.taken_unlocked().unwrap_or_default();
            attached.extend(taken.iter().map(ToString::to_string));
        }
        Ok(attached)
    }

    fn container(&self, alias: &str) -> Option<String> {
        let (container, _, network) = of_alias(alias)?;
        (network == self.name.as_str()).then(|| container.to_owned())
    }

    fn remains(&self) -> Remains {
        Remains::of(&self.conf(), &State::Missing)
    }

    fn addresses(&self) -> Option<Store> {
        match self.remains().giver {
            Giver::HostLocal(data_dir) => Store::existing(&data_dir, &self.name),
            Giver::External(_) => None,
        }
    }

    /// The bridge, if there is one and nobody else's link is on it.
    fn bridge(&self, host: &mut Socket) -> Result<Option<LinkName>, UninstallError> {
        let bridge = self.remains().bridge;
        let found = observe(host, &links([bridge]))?.links.remove(&bridge);
        let ours = |alias: &Option<String>| {
            alias.as_ref().is_some_and(|alias| self.container(alias).is_some())
        };
        let is_free = ports(host, bridge)?.values().all(ours);
        Ok(found.filter(|link| is_free && link.kind == LinkKind::Bridge).map(|_| bridge))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Uninstall, String> {
        let arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
        Uninstall::parse(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_understood_or_refused() {
        let directory: PathBuf = "/opt/cni/bin".into();
        let plain =
            Uninstall { directory, conf: CONFIGURATION.into(), dry_run: false, force: false };
        assert_eq!(parse(&["/opt/cni/bin"]), Ok(plain.clone()));
        let all = Uninstall { conf: "/a".into(), dry_run: true, force: true, ..plain };
        assert_eq!(parse(&["--dry-run", "/opt/cni/bin", "--conf=/a", "--force"]), Ok(all));
        for arguments in [&[][..], &["a", "b"], &["a", "--all"], &["--dry-run"]] {
            assert_eq!(parse(arguments), Err(USAGE.to_owned()), "{arguments:?}");
        }
    }

    #[test]
    fn a_list_of_others_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("10-other.conflist");
        for text in ["", "[]", r#"{"name":"a","plugins":[{"type":"bridge"}]}"#] {
            fs::write(&conf, text).unwrap();
            let error = Network::of_list(&conf).map(|_| ()).unwrap_err();
            assert!(matches!(error, UninstallError::NoList(_)), "{text}: {error}");
        }
    }

    #[test]
    fn only_this_program_and_its_names_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("program"), "ours").unwrap();
        fs::write(at("flannel"), "ours").unwrap();
        fs::write(at("portmap"), "of others").unwrap();
        for (name, to) in [("bridge", "flannel"), ("loopback", "/elsewhere/flannel")] {
            std::os::unix::fs::symlink(to, at(name)).unwrap();
        }
        let uninstall = parse(&[directory.path().to_str().unwrap()]).unwrap();
        assert_eq!(uninstall.programs(&at("program")), [at("bridge"), at("flannel")]);
        fs::write(at("flannel"), "of others").unwrap();
        assert!(uninstall.programs(&at("program")).is_empty());
    }
}
