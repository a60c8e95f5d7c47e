//! The delegate's configuration, kept in a file for each container from ADD to DEL.
//!
//! The format is that of flannel's own plugin, so that a node can change from one to the other under
//! running pods. DEL works without the file too, if it has to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fabric::json;
use fabric::subnet_file::atomic;
use serde_json::{Map, Value};

use crate::invocation::Id;

/// Where the configuration of a container's delegate is kept.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Nothing.
    Missing,
    /// Something that cannot be read, for example because the machine lost power.
    Damaged,
    /// The delegate's configuration.
    Delegate(Map<String, Value>),
}

/// The file cannot be changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct StateError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl StateFile {
    /// The file for `container` in `data_dir`.
    pub fn of(data_dir: &Path, container: &Id) -> Self {
        Self { path: data_dir.join(container.as_str()) }
    }

    /// All files in `data_dir` that are kept for a network, with the containers that they are for.
    pub fn all(data_dir: &Path, network: &Id) -> Vec<(Id, Self)> {
        let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
        let containers = entries.filter_map(|entry| Id::new(entry.file_name().to_str()?));
        let files = containers.map(|container| (container.clone(), Self::of(data_dir, &container)));
        files.filter(|(_, file)| file.read_for(network) != State::Missing).collect()
    }

    /// Reads the file. A container may be attached to several networks, but there is only one file
    /// for it; what is kept for another network counts as nothing.
    pub fn read_for(&self, network: &Id) -> State {
        match fs::read(&self.path) {
            Ok(bytes) => match json::from_slice::<Map<String, Value>>(&bytes) {
                Ok(delegate) if delegate.get("name") == Some(&network.as_str().into()) => {
                    State::Delegate(delegate)
                }
                Ok(_) => State::Missing,
                Err(_) => State::Damaged,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::Missing,
            Err(_) => State::Damaged,
        }
    }

    /// Keeps the configuration of a delegate, in one step.
    ///
    /// # Errors
    /// If the file cannot be written; what was there is then still there.
    pub fn save(&self, delegate: &Map<String, Value>) -> Result<Saved, StateError> {
        let previous = fs::read(&self.path).ok();
        let text = serde_json::to_vec(delegate).expect("all keys are text");
        let written = atomic::create_parent(&self.path, 0o700).and_then(|()| self.write(&text));
        written.map_err(self.cannot("write"))?;
        Ok(Saved { file: self.clone(), previous, committed: false })
    }

    /// Removes the file, if it is there, and what killed processes had not finished of it.
    ///
    /// # Errors
    /// If it stays.
    pub fn remove(&self) -> Result<(), StateError> {
        self.remove_leftovers()?;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(self.cannot("remove")),
        }
    }

    /// Removes what killed processes had not finished of the file.
    ///
    /// # Errors
    /// If some of it stays.
    pub fn remove_leftovers(&self) -> Result<(), StateError> {
        for path in self.leftovers().unwrap_or_default() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(self.cannot("remove what was not finished of"))?,
            }
        }
        Ok(())
    }

    /// Removes what processes that are gone had not finished in `data_dir`, of any file.
    pub fn remove_orphans(data_dir: &Path) {
        for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let hidden = name.to_str().and_then(|name| name.strip_prefix('.'));
            let process = hidden.and_then(|name| name.rsplit_once('.')?.1.parse::<u32>().ok());
            let is_orphan =
                process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists());
            if is_orphan {
                let _another_gc_may_be_faster = fs::remove_file(entry.path());
            }
        }
    }

    /// Their names begin with a dot and the name of the file, and end with the process.
    fn leftovers(&self) -> Option<Vec<PathBuf>> {
        let prefix = format!(".{}.", self.path.file_name()?.to_str()?);
        let is_leftover = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            process.is_some_and(|process| process.bytes().all(|digit| digit.is_ascii_digit()))
        };
        let entries = fs::read_dir(self.path.parent()?).ok()?.flatten();
        Some(entries.filter(is_leftover).map(|entry| entry.path()).collect())
    }

    fn write(&self, content: &[u8]) -> io::Result<()> {
        atomic::replace(&self.path, content, 0o600)
    }

    fn cannot(&self, verb: &'static str) -> impl FnOnce(io::Error) -> StateError {
        let path = self.path.clone();
        move |source| StateError { verb, path, source }
    }
}

/// A file that becomes what it was before unless the attachment comes about.
#[derive(Debug)]
#[must_use]
pub struct Saved {
    file: StateFile,
    previous: Option<Vec<u8>>,
    committed: bool,
}

impl Saved {
    /// Whether nothing was kept for the container before, which means that it has no attachment.
    pub fn is_first(&self) -> bool {
        self.previous.is_none()
    }

    /// Keeps the file.
    pub fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // Whoever drops it is failing for another reason, which is the one to be told.
        match &self.previous {
            Some(content) => drop(self.file.write(content)),
            None => drop(self.file.remove()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn file(directory: &Path) -> StateFile {
        StateFile::of(&directory.join("flannel"), &Id::new("one").unwrap())
    }

    fn read(file: &StateFile) -> State {
        file.read_for(&Id::new("cbr0").unwrap())
    }

    fn delegate(mtu: u32) -> Map<String, Value> {
        json!({"name": "cbr0", "type": "bridge", "mtu": mtu}).as_object().unwrap().clone()
    }

    #[test]
    fn what_was_saved_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        assert_eq!(read(&file), State::Missing);
        let saved = file.save(&delegate(1450)).unwrap();
        assert!(saved.is_first());
        saved.commit();
        assert_eq!(read(&file), State::Delegate(delegate(1450)));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file.path), 0o600);
        assert_eq!(mode(file.path.parent().unwrap()), 0o700);
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(read(&file), State::Missing);
    }

    #[test]
    fn a_file_becomes_what_it_was_unless_it_is_committed() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        drop(file.save(&delegate(1450)).unwrap());
        assert_eq!(read(&file), State::Missing);
        file.save(&delegate(1450)).unwrap().commit();
        let second = file.save(&delegate(1500)).unwrap();
        assert!(!second.is_first());
        drop(second);
        assert_eq!(read(&file), State::Delegate(delegate(1450)));
    }

    #[test]
    fn what_is_kept_for_another_network_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        file.save(&delegate(1450)).unwrap().commit();
        assert_eq!(file.read_for(&Id::new("cbr1").unwrap()), State::Missing);
    }

    #[test]
    fn what_a_power_loss_left_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        file.save(&delegate(1450)).unwrap().commit();
        for content in ["", "{\"mtu\":", "[]", "\0\0\0"] {
            fs::write(&file.path, content).unwrap();
            assert_eq!(read(&file), State::Damaged, "{content:?}");
        }
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        file.save(&delegate(1450)).unwrap().commit();
        let parent = file.path.parent().unwrap();
        for name in [".one.17", ".one.two.18", ".two.19"] {
            fs::write(parent.join(name), "{").unwrap();
        }
        file.remove().unwrap();
        let mut left: Vec<_> =
            fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".one.two.18", ".two.19"]);
    }
}
