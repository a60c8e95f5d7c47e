//! Versions of the CNI specification: which we speak, and which commands a version has.
//!
//! Texts and rules are those of the Go library that runtimes and their tests know.

use std::fmt;

use crate::invocation::Command;

/// A version of the specification that this plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first; it had no VERSION command yet.
    V0_1_0,
    /// Same results as 0.1.0.
    V0_2_0,
    /// Results with interfaces and several addresses.
    V0_3_0,
    /// What the stock network list of flannel asks for.
    V0_3_1,
    /// Adds CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// Addresses lose their `version`.
    V1_0_0,
    /// Adds GC and STATUS.
    V1_1_0,
}

/// Why a configuration cannot be served in its version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// We do not speak that version.
    #[error("incompatible CNI versions")]
    Incompatible {
        /// What the configuration says.
        config: String,
        /// The oldest version that the plugin speaks.
        oldest: Version,
    },
    /// The command came into being after that version.
    #[error("config version does not allow {0}")]
    TooOldFor(Command),
    /// The version came into being after this plugin.
    #[error("plugin version does not allow {0}")]
    TooNewFor(Command),
    /// It is not a version.
    #[error("invalid version {version:?}: {reason}")]
    Malformed {
        /// What the configuration says.
        version: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The one to use where no configuration says otherwise.
    pub const NEWEST: Self = Self::V1_1_0;

    /// Returns the version as configurations write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Returns all from `oldest` on.
    pub fn since(oldest: Self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |version| *version >= oldest)
    }

    /// Chooses the version for `command` under a configuration with this `cniVersion`, which is empty
    /// if the configuration has none, for a plugin that speaks all versions from `oldest` on.
    ///
    /// # Errors
    /// If the plugin does not speak the version, or if that does not have the command.
    pub fn negotiate(config: &str, command: Command, oldest: Self) -> Result<Self, VersionError> {
        if let Some(since) = since(command) {
            let number = parse(config)?;
            if number < parse(since.as_str())? {
                return Err(VersionError::TooOldFor(command));
            }
            if number > parse(Self::NEWEST.as_str())? {
                return Err(VersionError::TooNewFor(command));
            }
        }
        let version = Self::exact(config).filter(|version| *version >= oldest);
        version.ok_or_else(|| VersionError::Incompatible { config: config.to_owned(), oldest })
    }

    /// Returns the version with exactly this text; nothing stands for the oldest.
    pub fn exact(config: &str) -> Option<Self> {
        let wanted = if config.is_empty() { Self::V0_1_0.as_str() } else { config };
        Self::ALL.into_iter().find(|version| version.as_str() == wanted)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The version that brought a command that not all versions have.
const fn since(command: Command) -> Option<Version> {
    match command {
        Command::Add | Command::Del | Command::Version => None,
        Command::Check => Some(Version::V0_4_0),
        Command::Gc | Command::Status => Some(Version::V1_1_0),
    }
}

/// Reads up to three numbers; those that are left out are zero.
fn parse(version: &str) -> Result<[u32; 3], VersionError> {
    let malformed = |reason| VersionError::Malformed { version: version.to_owned(), reason };
    if version.is_empty() {
        return parse(Version::V0_1_0.as_str());
    }
    let mut numbers = [0; 3];
    for (index, part) in version.split('.').enumerate() {
        let number = numbers.get_mut(index).ok_or_else(|| malformed("too many parts"))?;
        *number = part.parse().map_err(|_not_a_number| malformed("a part is not a number"))?;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(config: &str, command: Command) -> Result<Version, VersionError> {
        Version::negotiate(config, command, Version::V0_1_0)
    }

    #[test]
    fn a_configuration_gets_exactly_its_version() {
        for version in Version::ALL {
            assert_eq!(negotiate(version.as_str(), Command::Add), Ok(version));
        }
        assert_eq!(negotiate("", Command::Add), Ok(Version::V0_1_0));
        for foreign in ["0.3", "0.3.2", "1.0", "2.0.0", " 1.0.0", "v1.0.0"] {
            let (config, oldest) = (foreign.to_owned(), Version::V0_1_0);
            let expected = Err(VersionError::Incompatible { config, oldest });
            assert_eq!(negotiate(foreign, Command::Del), expected);
        }
    }

    #[test]
    fn a_plugin_may_need_what_old_versions_lack() {
        let oldest = Version::V0_4_0;
        assert_eq!(Version::negotiate("0.4.0", Command::Del, oldest), Ok(oldest));
        let expected = Err(VersionError::Incompatible { config: "0.3.1".to_owned(), oldest });
        assert_eq!(Version::negotiate("0.3.1", Command::Del, oldest), expected);
    }

    #[test]
    fn commands_need_the_version_that_brought_them() {
        let table = [
            ("", Command::Check, Some("config version does not allow CHECK")),
            ("0.3.1", Command::Check, Some("config version does not allow CHECK")),
            ("0.4.0", Command::Check, None),
            ("1.1.0", Command::Check, None),
            ("1.2.0", Command::Check, Some("plugin version does not allow CHECK")),
            ("0.5.0", Command::Check, Some("incompatible CNI versions")),
            ("1.0.0", Command::Gc, Some("config version does not allow GC")),
            ("1.0.0", Command::Status, Some("config version does not allow STATUS")),
            ("1.1.0", Command::Status, None),
            ("2", Command::Gc, Some("plugin version does not allow GC")),
            ("1.1.0.0", Command::Gc, Some("invalid version \"1.1.0.0\": too many parts")),
            ("one", Command::Gc, Some("invalid version \"one\": a part is not a number")),
        ];
        for (config, command, expected) in table {
            let error = negotiate(config, command).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), expected, "{command} {config}");
        }
    }
}
