//! The delegate's configuration, kept in a file for each attachment from ADD to DEL.
//!
//! ```text
//! DIRECTORY/CONTAINER                      the container's first attachment
//! DIRECTORY/CONTAINER@NETWORK@INTERFACE    its others
//! ```
//!
//! The first is what flannel's own plugin knows, so that a node can change from one to the other
//! under running pods. There it is the only one, for whatever attachment came last; so ours say in
//! one key more which interface they are for. DEL works without the file too, if it has to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fabric::json;
use fabric::subnet_file::atomic;
use serde_json::{Map, Value};

use crate::invocation::{Attachment, Id};

/// The key that says which interface of the container it is about.
const IF_NAME: &str = "ifName";

/// Where the configuration of an attachment's delegate is kept.
#[derive(Clone, Debug)]
pub struct StateFile {
    data_dir: PathBuf,
    attachment: Attachment,
}

/// A file that is kept for an attachment of a network.
#[derive(Debug)]
pub struct Kept {
    /// The container.
    pub container: Id,
    /// The interface, unless flannel's own plugin wrote the file.
    pub if_name: Option<String>,
    /// What it holds.
    pub state: State,
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
    /// The file for `attachment` in `data_dir`.
    pub fn of(data_dir: &Path, attachment: &Attachment) -> Self {
        Self { data_dir: data_dir.to_owned(), attachment: attachment.clone() }
    }

    /// All files in `data_dir` that are kept for a network.
    pub fn all(data_dir: &Path, network: &Id) -> Vec<Kept> {
        let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
        let kept = entries.filter_map(|entry| {
            let name = entry.file_name();
            let container = Id::new(name.to_str()?.split('@').next()?)?;
            let (state, if_name) = read(&entry.path());
            let is_of_network = match &state {
                State::Missing => false,
                State::Damaged => true,
                State::Delegate(delegate) => is_of_network(delegate, network),
            };
            is_of_network.then(|| Kept { container, if_name, state, path: entry.path() })
        });
        kept.collect()
    }

    /// Reads the file.
    pub fn read(&self) -> State {
        let path = self.present();
        let (state, if_name) = read(&path);
        match &state {
            State::Delegate(delegate) if !self.is_ours(delegate, if_name.as_deref()) => {
                State::Missing
            }
            _ => state,
        }
    }

    /// Keeps the configuration of a delegate, in one step.
    ///
    /// # Errors
    /// If the file cannot be written; what was there is then still there.
    pub fn save(&self, delegate: &Map<String, Value>) -> Result<Saved, StateError> {
        let path = self.free();
        let previous = fs::read(&path).ok();
        let is_first = previous.is_none() && path == self.first();
        let mut delegate = delegate.clone();
        delegate.insert(IF_NAME.to_owned(), self.attachment.if_name.as_str().into());
        let text = serde_json::to_vec(&delegate).expect("all keys are text");
        let written = atomic::create_parent(&path, 0o700).and_then(|()| write(&path, &text));
        written.map_err(cannot("write", &path))?;
        Ok(Saved { path, previous, is_first, committed: false })
    }

    /// Removes the file, if it is there, and what killed processes had not finished of it.
    ///
    /// # Errors
    /// If it stays.
    pub fn remove(&self) -> Result<(), StateError> {
        for path in [self.first(), self.further()] {
            remove_leftovers(&path)?;
        }
        if self.read() == State::Missing { Ok(()) } else { remove(&self.present()) }
    }

    /// The file that flannel's own plugin would have.
    fn first(&self) -> PathBuf {
        self.data_dir.join(self.attachment.container.as_str())
    }

    /// A file of its own. An [`Id`] has no `@`.
    fn further(&self) -> PathBuf {
        let Attachment { network, container, if_name } = &self.attachment;
        self.data_dir.join(format!("{container}@{network}@{if_name}"))
    }

    /// The one to read.
    fn present(&self) -> PathBuf {
        let further = self.further();
        if further.exists() { further } else { self.first() }
    }

    /// The one to write: the first unless another attachment has it.
    fn free(&self) -> PathBuf {
        let path = self.present();
        match read(&path) {
            (State::Delegate(delegate), if_name)
                if !self.is_ours(&delegate, if_name.as_deref()) =>
            {
                self.further()
            }
            _ => path,
        }
    }

    fn is_ours(&self, delegate: &Map<String, Value>, if_name: Option<&str>) -> bool {
        is_of_network(delegate, &self.attachment.network)
            && if_name.is_none_or(|name| name == self.attachment.if_name.as_str())
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
}

impl Kept {
    /// Removes the file, if it is still there.
    ///
    /// # Errors
    /// If it stays.
    pub fn remove(&self) -> Result<(), StateError> {
        remove_leftovers(&self.path)?;
        remove(&self.path)
    }
}

/// Returns what is in a file, and the interface that it is about.
fn read(path: &Path) -> (State, Option<String>) {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (State::Missing, None),
        Err(_) => return (State::Damaged, None),
    };
    let Ok(mut delegate) = json::from_slice::<Map<String, Value>>(&bytes) else {
        return (State::Damaged, None);
    };
    let if_name = delegate.remove(IF_NAME);
    let if_name = if_name.and_then(|name| name.as_str().map(str::to_owned));
    (State::Delegate(delegate), if_name)
}

fn is_of_network(delegate: &Map<String, Value>, network: &Id) -> bool {
    delegate.get("name").and_then(Value::as_str) == Some(network.as_str())
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    atomic::replace(path, content, 0o600)
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(cannot("remove", path)),
    }
}

/// Removes what killed processes had not finished of a file.
fn remove_leftovers(path: &Path) -> Result<(), StateError> {
    leftovers(path).unwrap_or_default().iter().try_for_each(|path| remove(path))
}

/// Their names begin with a dot and the name of the file, and end with the process.
fn leftovers(path: &Path) -> Option<Vec<PathBuf>> {
    let prefix = format!(".{}.", path.file_name()?.to_str()?);
    let is_leftover = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        process.is_some_and(|process| process.bytes().all(|digit| digit.is_ascii_digit()))
    };
    let entries = fs::read_dir(path.parent()?).ok()?.flatten();
    Some(entries.filter(is_leftover).map(|entry| entry.path()).collect())
}

fn cannot(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError { verb, path, source }
}

/// A file that becomes what it was before unless the attachment comes about.
#[derive(Debug)]
#[must_use]
pub struct Saved {
    path: PathBuf,
    previous: Option<Vec<u8>>,
    is_first: bool,
    committed: bool,
}

impl Saved {
    /// Whether nothing was kept for the container before, which means that it has no attachment.
    pub const fn is_first(&self) -> bool {
        self.is_first
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
            Some(content) => drop(write(&self.path, content)),
            None => drop(remove(&self.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn file(directory: &Path) -> StateFile {
        file_of(directory, "cbr0", "eth0")
    }

    fn file_of(directory: &Path, network: &str, if_name: &str) -> StateFile {
        let (network, container) = (Id::new(network).unwrap(), Id::new("one").unwrap());
        let if_name = if_name.parse().unwrap();
        let attachment = Attachment { network, container, if_name };
        StateFile::of(&directory.join("flannel"), &attachment)
    }

    fn delegate(mtu: u32) -> Map<String, Value> {
        json!({"name": "cbr0", "type": "bridge", "mtu": mtu}).as_object().unwrap().clone()
    }

    #[test]
    fn what_was_saved_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        assert_eq!(file.read(), State::Missing);
        let saved = file.save(&delegate(1450)).unwrap();
        assert!(saved.is_first());
        saved.commit();
        assert_eq!(file.read(), State::Delegate(delegate(1450)));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file.first()), 0o600);
        assert_eq!(mode(&file.data_dir), 0o700);
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.read(), State::Missing);
    }

    #[test]
    fn a_file_becomes_what_it_was_unless_it_is_committed() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        drop(file.save(&delegate(1450)).unwrap());
        assert_eq!(file.read(), State::Missing);
        file.save(&delegate(1450)).unwrap().commit();
        let second = file.save(&delegate(1500)).unwrap();
        assert!(!second.is_first());
        drop(second);
        assert_eq!(file.read(), State::Delegate(delegate(1450)));
    }

    #[test]
    fn each_attachment_of_a_container_has_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let of = |network, if_name| file_of(directory.path(), network, if_name);
        let (one, two, three) = (of("cbr0", "eth0"), of("cbr0", "net1"), of("cbr1", "net2"));
        one.save(&delegate(1)).unwrap().commit();
        assert_eq!((two.read(), three.read()), (State::Missing, State::Missing));
        let second = two.save(&delegate(2)).unwrap();
        assert!(!second.is_first(), "the container may have addresses already");
        second.commit();
        assert_eq!(one.read(), State::Delegate(delegate(1)));
        assert_eq!(two.read(), State::Delegate(delegate(2)));
        let kept = StateFile::all(&one.data_dir, &one.attachment.network);
        let mut names: Vec<_> = kept.iter().map(|kept| kept.if_name.as_deref()).collect();
        names.sort_unstable();
        assert_eq!(names, [Some("eth0"), Some("net1")]);
        for _ in 0..2 {
            two.remove().unwrap();
            assert_eq!(one.read(), State::Delegate(delegate(1)));
        }
        one.remove().unwrap();
        assert_eq!(fs::read_dir(&one.data_dir).unwrap().count(), 0);
    }

    #[test]
    fn what_flannels_own_plugin_wrote_is_of_any_interface() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        fs::create_dir(&file.data_dir).unwrap();
        fs::write(file.first(), r#"{"name":"cbr0","type":"bridge","mtu":1450}"#).unwrap();
        assert_eq!(file.read(), State::Delegate(delegate(1450)));
        let other = file_of(directory.path(), "cbr1", "eth0");
        assert_eq!(other.read(), State::Missing);
        other.remove().unwrap();
        file.remove().unwrap();
        assert!(!file.first().exists());
    }

    #[test]
    fn what_a_power_loss_left_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        file.save(&delegate(1450)).unwrap().commit();
        for content in ["", "{\"mtu\":", "[]", "\0\0\0"] {
            fs::write(file.first(), content).unwrap();
            assert_eq!(file.read(), State::Damaged, "{content:?}");
        }
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(directory.path());
        file.save(&delegate(1450)).unwrap().commit();
        let parent = &file.data_dir;
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
