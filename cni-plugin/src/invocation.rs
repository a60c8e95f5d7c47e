//! What the runtime asks for: the `CNI_*` variables and the configuration on standard input, checked
//! and turned into one typed request.
//!
//! The order of the checks and their texts are those of the Go library that other plugins are made
//! with, because runtimes and their tests know them. Nothing here touches the machine.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;

use fabric::json;
use fabric::link_name::{InvalidLinkName, LinkName};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::version::{Version, VersionError};

/// What the runtime wants, in `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Undo that.
    Del,
    /// Verify that it is as it was made.
    Check,
    /// Remove what belongs to attachments that are gone.
    Gc,
    /// Tell whether an ADD could be served now.
    Status,
    /// Tell the versions of the specification.
    Version,
}

impl Command {
    const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// Returns the value of `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The identity of a container or a network: a letter or digit, then also `_`, `.` and `-`.
///
/// Such a name is safe as one component of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(String);

impl Id {
    /// Returns `None` if the text has other characters, or none.
    pub fn new(text: &str) -> Option<Self> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let valid = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(inner);
        valid.then(|| Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What identifies an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The network, by the name in its configuration.
    pub network: Id,
    /// The container, as the runtime calls it.
    pub container: Id,
    /// The interface in the container's sandbox.
    pub if_name: LinkName,
}

#[cfg(test)]
impl Attachment {
    /// One for tests.
    ///
    /// # Panics
    /// If one of these is no name.
    pub(crate) fn named(network: &str, container: &str, if_name: &str) -> Self {
        let id = |text| Id::new(text).expect("a name");
        let if_name = if_name.parse().expect("a name of an interface");
        Self { network: id(network), container: id(container), if_name }
    }
}

/// What comes with every command about one attachment.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Which attachment.
    pub attachment: Attachment,
    /// `CNI_ARGS` as they are; a DEL works whatever they say.
    pub args: String,
    /// The directories that other plugins are in, separated by colons (`CNI_PATH`).
    pub path: String,
    /// Whether the sandbox may be the namespace that this process is in.
    pub own_netns_allowed: bool,
    /// The version of the configuration and so of the result.
    pub version: Version,
    /// The configuration, which each plugin understands in its own way.
    pub config: Map<String, Value>,
}

/// What comes with commands about a whole network.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkCall {
    /// Which network.
    pub network: Id,
    /// The directories that other plugins are in, separated by colons (`CNI_PATH`).
    pub path: String,
    /// The configuration.
    pub config: Map<String, Value>,
}

impl Call {
    /// The same call for a delegate, which has a configuration of its own.
    pub fn with_config(&self, config: Map<String, Value>) -> Self {
        Self { config, ..self.clone() }
    }
}

impl NetworkCall {
    /// The same call for a delegate, which has a configuration of its own.
    pub fn with_config(&self, config: Map<String, Value>) -> Self {
        Self { config, ..self.clone() }
    }
}

/// A command with all that it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Make the attachment, in the sandbox at this path.
    Add(Call, PathBuf),
    /// Remove the attachment. Its sandbox may be gone, then there is often no path.
    Del(Call, Option<PathBuf>),
    /// Verify the attachment, in the sandbox at this path.
    Check(Call, PathBuf),
    /// Remove what attachments left behind that are gone.
    Gc(NetworkCall),
    /// Tell whether an ADD could be served now.
    Status(NetworkCall),
    /// Tell the versions of the specification.
    Version,
}

/// Why a request cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum InvocationError {
    /// Variables that the command needs are not set, or empty.
    #[error("required env variables [{}] missing", .0.join(","))]
    Missing(Vec<&'static str>),
    /// `CNI_CONTAINERID` has a character that it may not have.
    #[error("invalid characters in containerID")]
    ContainerId(String),
    /// `CNI_IFNAME` cannot be the name of an interface.
    #[error("{}", if_name_text(.0))]
    IfName(InvalidLinkName),
    /// There is no such command.
    #[error("unknown CNI_COMMAND: {0}")]
    UnknownCommand(String),
    /// Standard input cannot be read.
    #[error("error reading from stdin")]
    Stdin(#[source] io::Error),
    /// Standard input is not JSON.
    #[error("error unmarshall network config")]
    Json(#[source] json::Error),
    /// The configuration has no name.
    #[error("missing network name")]
    NoName,
    /// The name has a character that it may not have.
    #[error("invalid characters found in network name")]
    Name(String),
    /// The version is not a text.
    #[error("decoding version from network config")]
    VersionJson(#[source] json::Error),
    /// The version is not one that can be served.
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// The Go library has shorter texts than the kernel's rules.
fn if_name_text(invalid: &InvalidLinkName) -> &'static str {
    match invalid {
        InvalidLinkName::Empty => "interface name is empty",
        InvalidLinkName::TooLong(_) => "interface name is too long",
        InvalidLinkName::Dots => "interface name is . or ..",
        InvalidLinkName::Character(_) => "interface name contains / or : or whitespace characters",
    }
}

/// A request whose command is known to have its variables and a named configuration.
#[derive(Debug)]
pub struct Invocation {
    environment: Environment,
    name: Option<Id>,
    config: Vec<u8>,
}

impl Invocation {
    /// Reads the variables through `lookup`, then the configuration.
    ///
    /// # Errors
    /// If a variable or the name of the network is missing or invalid, or if the configuration is
    /// not JSON.
    pub fn collect(
        lookup: impl Fn(&str) -> Option<String>,
        mut stdin: impl Read,
    ) -> Result<Self, InvocationError> {
        let environment = Environment::read(lookup)?;
        let mut config = Vec::new();
        if environment.command == Command::Version.as_str() {
            return Ok(Self { environment, name: None, config });
        }
        stdin.read_to_end(&mut config).map_err(InvocationError::Stdin)?;
        let Named { name } = json::from_slice(&config).map_err(InvocationError::Json)?;
        if name.is_empty() {
            return Err(InvocationError::NoName);
        }
        let name = Id::new(&name).ok_or(InvocationError::Name(name))?;
        Ok(Self { environment, name: Some(name), config })
    }

    /// Returns the version that documents for the runtime shall have: that of the configuration, if
    /// it can be had.
    pub fn version(&self) -> Version {
        let said = json::from_slice::<Versioned>(&self.config).ok();
        said.and_then(|said| Version::exact(&said.cni_version)).unwrap_or(Version::NEWEST)
    }

    /// Turns it into a request to a plugin that speaks all versions from `oldest` on.
    ///
    /// # Errors
    /// If there is no such command, if the version of the configuration cannot be served, or if the
    /// configuration does not decode.
    pub fn request(self, oldest: Version) -> Result<Request, InvocationError> {
        let Self { environment, name, config } = self;
        let command = Command::ALL.into_iter().find(|one| one.as_str() == environment.command);
        let command =
            command.ok_or_else(|| InvocationError::UnknownCommand(environment.command.clone()))?;
        let Some(network) = name else { return Ok(Request::Version) };
        let said: Versioned = json::from_slice(&config).map_err(InvocationError::VersionJson)?;
        let version = Version::negotiate(&said.cni_version, command, oldest)?;
        let config = json::from_slice(&config).map_err(InvocationError::Json)?;
        environment.request(command, network, version, config)
    }
}

#[derive(Default, Deserialize)]
#[serde(default, expecting = "an object")]
struct Named {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "an object")]
struct Versioned {
    cni_version: String,
}

/// The values of the variables; what the command needs is there and valid.
#[derive(Debug, Default)]
struct Environment {
    command: String,
    container_id: String,
    netns: String,
    if_name: String,
    args: String,
    path: String,
    netns_override: String,
}

/// A variable: its name, the commands that need it, and what its value must be for them.
struct Variable {
    name: &'static str,
    needed_by: &'static [&'static str],
    check: fn(&str) -> Result<(), InvocationError>,
}

const fn variable(name: &'static str, needed_by: &'static [&'static str]) -> Variable {
    Variable { name, needed_by, check: |_anything| Ok(()) }
}

const VARIABLES: [Variable; 7] = [
    variable("CNI_COMMAND", &[]),
    Variable { check: check_container_id, ..variable("CNI_CONTAINERID", &["ADD", "CHECK", "DEL"]) },
    variable("CNI_NETNS", &["ADD", "CHECK"]),
    Variable { check: check_if_name, ..variable("CNI_IFNAME", &["ADD", "CHECK", "DEL"]) },
    variable("CNI_ARGS", &[]),
    variable("CNI_PATH", &["ADD", "CHECK", "DEL", "GC", "STATUS"]),
    variable("CNI_NETNS_OVERRIDE", &[]),
];

impl Environment {
    /// An invalid value is told before a missing one, and all missing ones together.
    fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, InvocationError> {
        let values = VARIABLES.map(|variable| lookup(variable.name).unwrap_or_default());
        let command = values[0].as_str();
        let mut missing = Vec::new();
        for (variable, value) in VARIABLES.iter().zip(&values) {
            let needed = variable.needed_by.contains(&command) || variable.name == "CNI_COMMAND";
            match (needed, value.is_empty()) {
                (true, true) => missing.push(variable.name),
                (true, false) => (variable.check)(value)?,
                (false, _) => {}
            }
        }
        if !missing.is_empty() {
            return Err(InvocationError::Missing(missing));
        }
        let [command, container_id, netns, if_name, args, path, netns_override] = values;
        Ok(Self { command, container_id, netns, if_name, args, path, netns_override })
    }

    fn request(
        self,
        command: Command,
        network: Id,
        version: Version,
        config: Map<String, Value>,
    ) -> Result<Request, InvocationError> {
        let netns = (!self.netns.is_empty()).then(|| PathBuf::from(&self.netns));
        let path = self.path.clone();
        let whole = |network, config| NetworkCall { network, path, config };
        Ok(match command {
            Command::Add => {
                Request::Add(self.call(network, version, config)?, netns.unwrap_or_default())
            }
            Command::Check => {
                Request::Check(self.call(network, version, config)?, netns.unwrap_or_default())
            }
            Command::Del => Request::Del(self.call(network, version, config)?, netns),
            Command::Gc => Request::Gc(whole(network, config)),
            Command::Status => Request::Status(whole(network, config)),
            Command::Version => Request::Version,
        })
    }

    fn call(
        self,
        network: Id,
        version: Version,
        config: Map<String, Value>,
    ) -> Result<Call, InvocationError> {
        let invalid = || InvocationError::ContainerId(self.container_id.clone());
        let container = Id::new(&self.container_id).ok_or_else(invalid)?;
        let if_name = self.if_name.parse().map_err(InvocationError::IfName)?;
        let allowed = &self.netns_override;
        Ok(Call {
            attachment: Attachment { network, container, if_name },
            args: self.args.clone(),
            path: self.path.clone(),
            own_netns_allowed: allowed == "1" || allowed.eq_ignore_ascii_case("true"),
            version,
            config,
        })
    }
}

fn check_container_id(value: &str) -> Result<(), InvocationError> {
    Id::new(value).map(drop).ok_or_else(|| InvocationError::ContainerId(value.to_owned()))
}

fn check_if_name(value: &str) -> Result<(), InvocationError> {
    value.parse::<LinkName>().map(drop).map_err(InvocationError::IfName)
}

#[cfg(test)]
mod tests;
