//! A network configuration in a file: whoever has to know is told when it may be another one.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::debug;

/// Directories are looked at anew this often: one may be made later, or lie where nothing is told.
const LOOK: Duration = Duration::from_secs(60);

/// What cannot be watched is looked at this often.
const POLL: Duration = Duration::from_secs(10);

/// Whoever changes a lease in a directory opens this file; it holds no configuration.
pub(super) const LOCK: &str = "lock";

/// Tells of every change in these directories, and at the beginning, as long as the program runs.
///
/// Directories and not files, because files are replaced, and those of a ConfigMap by way of a link
/// beside them (Kubernetes documentation, "Mounted ConfigMaps are updated automatically").
pub(super) async fn watch(directories: &[&Path], changed: &Notify) {
    loop {
        changed.notify_one();
        match timeout(LOOK, follow(directories, changed)).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => {
                debug!(%error, "the configuration is not watched at the moment");
                sleep(POLL).await;
            }
        }
    }
}

/// Tells of every change until a directory is gone.
async fn follow(directories: &[&Path], changed: &Notify) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE | WatchMask::CREATE;
    let present: Vec<_> = directories.iter().filter(|directory| directory.is_dir()).collect();
    if present.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    for directory in present {
        inotify.watches().add(directory, mask | WatchMask::ONLYDIR)?;
    }
    // What happened before the directories were watched.
    changed.notify_one();
    let mut events = inotify.into_event_stream([0; 4096])?;
    while let Some(event) = events.next().await {
        let event = event?;
        if event.name.as_deref() != Some(OsStr::new(LOCK)) {
            changed.notify_one();
        }
        if event.mask.contains(EventMask::IGNORED) {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Runs `change` while somebody watches, and returns whether that was told.
    async fn tells(directory: &Path, change: impl FnOnce()) -> bool {
        let changed = Notify::new();
        let watching = watch(std::slice::from_ref(&directory), &changed);
        let listening = async {
            // The beginning, and the moment from which on nothing is missed.
            changed.notified().await;
            while timeout(Duration::from_millis(200), changed.notified()).await.is_ok() {}
            change();
            timeout(LOOK / 4, changed.notified()).await.is_ok()
        };
        tokio::select! {
            () = watching => false,
            told = listening => told,
        }
    }

    #[tokio::test]
    async fn a_volume_of_a_config_map_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path();
        let write = |version: &str| {
            fs::create_dir(volume.join(version)).unwrap();
            fs::write(volume.join(version).join("net-conf.json"), version).unwrap();
            symlink(version, volume.join("..data_tmp")).unwrap();
            fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        };
        write("..1");
        symlink("..data/net-conf.json", volume.join("net-conf.json")).unwrap();
        assert!(tells(volume, || write("..2")).await);
        assert_eq!(fs::read_to_string(volume.join("net-conf.json")).unwrap(), "..2");
    }

    #[tokio::test]
    async fn a_file_that_is_written_in_place_or_replaced_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (file, new) = (directory.path().join("net-conf.json"), directory.path().join("new"));
        assert!(tells(directory.path(), || fs::write(&file, "{}").unwrap()).await);
        fs::write(&new, "{}").unwrap();
        assert!(tells(directory.path(), || fs::rename(&new, &file).unwrap()).await);
    }
}
