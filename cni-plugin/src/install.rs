//! `flannel install DIRECTORY [--only NAME,NAME]`: puts this program and the names that it has into
//! a directory.
//!
//! Whatever a runtime runs meanwhile is the old file or the new one, never half of one: everything
//! is made beside its place and then renamed. The names are links, so that the file is there once.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::plugin::Plugin;

/// How to call it.
pub const USAGE: &str = "usage: flannel install DIRECTORY [--only NAME[,NAME]...]";

/// What to install, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    directory: PathBuf,
    names: Vec<Plugin>,
}

/// Why nothing is installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The arguments make no sense.
    #[error("{USAGE}")]
    Usage,
    /// There is no such plugin in this file.
    #[error("there is no plugin {0:?} in this file, only {names}", names = names())]
    Unknown(String),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn names() -> String {
    Plugin::ALL.map(Plugin::as_str).join(", ")
}

impl Install {
    /// Reads the arguments behind `install`.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn parse(arguments: &[String]) -> Result<Self, InstallError> {
        let (directory, only) = match arguments {
            [directory] => (directory, None),
            [directory, flag, only] if flag == "--only" => (directory, Some(only.as_str())),
            [directory, only] => match only.strip_prefix("--only=") {
                Some(only) => (directory, Some(only)),
                None => return Err(InstallError::Usage),
            },
            _ => return Err(InstallError::Usage),
        };
        if directory.starts_with('-') {
            return Err(InstallError::Usage);
        }
        let named =
            |name: &str| Plugin::named(name).ok_or_else(|| InstallError::Unknown(name.to_owned()));
        let names = match only {
            Some(only) => only.split(',').map(named).collect::<Result<_, _>>()?,
            None => Plugin::ALL.to_vec(),
        };
        Ok(Self { directory: directory.into(), names })
    }

    /// Installs `program`. The file itself is always `flannel`; the other names lead to it.
    ///
    /// # Errors
    /// If a file cannot be written. Those before it are in place then.
    pub fn run(&self, program: &Path) -> Result<(), InstallError> {
        self.put(Plugin::Flannel, |path| copy(program, path))?;
        for name in self.names.iter().filter(|name| **name != Plugin::Flannel) {
            self.put(*name, |path| symlink(Plugin::Flannel.as_str(), path))?;
        }
        Ok(())
    }

    fn put(
        &self,
        name: Plugin,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), InstallError> {
        let path = self.directory.join(name.as_str());
        let temporary = self.directory.join(format!(".{name}.{}", std::process::id()));
        let put = make(&temporary).and_then(|()| fs::rename(&temporary, &path));
        put.map_err(|source| {
            // The first error is the one worth telling.
            let _ = fs::remove_file(&temporary);
            InstallError::Write { path, source }
        })
    }
}

fn copy(program: &Path, path: &Path) -> io::Result<()> {
    const EXECUTABLE: u32 = 0o755;
    fs::copy(program, path)?;
    let file = File::open(path)?;
    file.set_permissions(fs::Permissions::from_mode(EXECUTABLE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Install, String> {
        let arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
        Install::parse(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_understood_or_named() {
        let install = |names: &[Plugin]| {
            Ok(Install { directory: "/opt/cni/bin".into(), names: names.to_vec() })
        };
        assert_eq!(parse(&["/opt/cni/bin"]), install(&Plugin::ALL));
        let two = install(&[Plugin::Bridge, Plugin::HostLocal]);
        assert_eq!(parse(&["/opt/cni/bin", "--only", "bridge,host-local"]), two);
        assert_eq!(parse(&["/opt/cni/bin", "--only=bridge,host-local"]), two);
        for arguments in [&[][..], &["a", "b"], &["a", "--only"], &["--only", "a"]] {
            assert_eq!(parse(arguments), Err(USAGE.to_owned()), "{arguments:?}");
        }
        let unknown = parse(&["/opt/cni/bin", "--only", "calico"]).unwrap_err();
        assert!(unknown.starts_with("there is no plugin \"calico\" in this file"), "{unknown}");
    }

    #[test]
    fn a_file_and_its_names_are_put_in_place_of_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("program"), "new").unwrap();
        fs::write(at("bridge"), "old").unwrap();
        let install = Install {
            directory: directory.path().to_owned(),
            names: vec![Plugin::Bridge, Plugin::Loopback],
        };
        install.run(&at("program")).unwrap();
        install.run(&at("program")).unwrap();
        for name in ["flannel", "bridge", "loopback"] {
            assert_eq!(fs::read(at(name)).unwrap(), b"new", "{name}");
        }
        assert_eq!(fs::read_link(at("bridge")).unwrap(), Path::new("flannel"));
        assert_eq!(fs::metadata(at("flannel")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }
}
