//! Files that belong to the node: the plugin's program and the configuration for the container
//! runtime. Whoever reads them meanwhile gets the old one or the new one, never half of one.
//!
//! `install-conf SOURCE DESTINATION` is flannel's own program for init containers; `cp -f` is what
//! its manifests used before. An image without a shell needs both, so that those manifests go on
//! working.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fabric::subnet_file::atomic;
use tokio::sync::watch;
use tracing::info;

use crate::health::Readiness;
use crate::retry;

/// How often it is tried to put the configuration in place.
const RETRY_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// The configuration for the container runtime, and where it looks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniConf {
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
}

/// Why a file is not in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("usage: {0} SOURCE DESTINATION")]
    Usage(&'static str),
    #[error("cannot read {path}", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no CNI configuration: it must be a JSON object", path = .path.display())]
    NoConfiguration { path: PathBuf },
    #[error("cannot write {path}", path = .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Tells the runtime about the network as soon as pods can be started, and again whenever that
/// becomes true once more: somebody may have removed it.
pub(crate) async fn tell_runtime(conf: Option<CniConf>, mut ready: watch::Receiver<Readiness>) {
    let Some(conf) = conf else { return std::future::pending().await };
    while ready.wait_for(|ready| ready.node).await.is_ok() {
        let put = async || conf.put();
        retry::until_ok("install the CNI configuration", RETRY_MAX, put).await;
        if ready.changed().await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

impl CniConf {
    fn put(&self) -> Result<(), InstallError> {
        let (content, mode) = read(&self.source)?;
        let is_object =
            serde_json::from_slice(&content).is_ok_and(|v: serde_json::Value| v.is_object());
        if !is_object {
            return Err(InstallError::NoConfiguration { path: self.source.clone() });
        }
        if fs::read(&self.destination).is_ok_and(|there| there == content) {
            return Ok(());
        }
        write(&self.destination, &content, mode)?;
        info!(path = %self.destination.display(), "CNI configuration installed");
        Ok(())
    }
}

/// Does what the name says that this program was called by: `install-conf` or `cp`. Returns `None`
/// if it was called by another one.
pub(crate) fn by_name(name: &Path, arguments: &[String]) -> Option<Result<(), InstallError>> {
    let name = match name.file_name()?.to_str()? {
        "install-conf" => "install-conf",
        "cp" => "cp [-f]",
        _ => return None,
    };
    let arguments: Vec<_> = arguments.iter().filter(|argument| *argument != "-f").collect();
    Some(match arguments[..] {
        [source, destination] => copy(Path::new(source), Path::new(destination)),
        _ => Err(InstallError::Usage(name)),
    })
}

/// Puts a file in the place of another one, with the mode of the first.
fn copy(source: &Path, destination: &Path) -> Result<(), InstallError> {
    let (content, mode) = read(source)?;
    let is_directory = destination.is_dir();
    let name = source.file_name().filter(|_| is_directory);
    let path = name.map_or_else(|| destination.to_owned(), |name| destination.join(name));
    write(&path, &content, mode)
}

fn read(path: &Path) -> Result<(Vec<u8>, u32), InstallError> {
    let failed = |source| InstallError::Read { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    Ok((fs::read(path).map_err(failed)?, mode))
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    atomic::replace(path, content, mode)
        .map_err(|source| InstallError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(name: &str, arguments: &[&Path]) -> Option<Result<(), String>> {
        let arguments: Vec<_> = arguments.iter().map(|a| a.display().to_string()).collect();
        Some(by_name(Path::new(name), &arguments)?.map_err(|error| error.to_string()))
    }

    #[test]
    fn init_containers_of_flannel_find_what_they_call() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("flannel"), directory.path().join("bin"));
        fs::write(&from, "program").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(called("/bin/cp", &[Path::new("-f"), &from, &to]), Some(Ok(())));
        assert_eq!(fs::read(&to).unwrap(), b"program");
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o755);
        fs::write(&from, "newer").unwrap();
        assert_eq!(called("/opt/bin/install-conf", &[&from, &to]), Some(Ok(())));
        assert_eq!(fs::read(&to).unwrap(), b"newer");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        let usage = "usage: install-conf SOURCE DESTINATION".to_owned();
        assert_eq!(called("install-conf", &[&from]), Some(Err(usage)));
        assert_eq!(called("/opt/bin/flanneld", &[&from, &to]), None);
    }

    #[test]
    fn what_is_no_configuration_is_not_installed() {
        let directory = tempfile::tempdir().unwrap();
        let conf = CniConf {
            source: directory.path().join("cni-conf.json"),
            destination: directory.path().join("10-flannel.conflist"),
        };
        assert!(matches!(conf.put(), Err(InstallError::Read { .. })));
        for wrong in ["", "[]", "{"] {
            fs::write(&conf.source, wrong).unwrap();
            assert!(matches!(conf.put(), Err(InstallError::NoConfiguration { .. })), "{wrong}");
        }
        assert!(!conf.destination.exists());
        fs::write(&conf.source, "{}").unwrap();
        conf.put().unwrap();
        conf.put().unwrap();
        assert_eq!(fs::read(&conf.destination).unwrap(), b"{}");
    }
}
