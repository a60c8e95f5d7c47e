//! Files that are replaced as a whole: a reader sees the old content or the new one, also when this
//! process is killed or the machine loses power half-way.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, IntoInnerError, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Makes `content` the content of the file at `path`, with `mode` whatever the umask.
///
/// Two processes may do so at once, two threads of one process may not.
///
/// # Errors
/// If the file system refuses. What was at `path` is then still there, and nothing else.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_with(path, mode, |file| file.write_all(content))
}

/// The same with content that `write` writes piece by piece.
///
/// # Errors
/// If the file system refuses, or `write` fails. What was at `path` is then still there, and nothing
/// else.
pub fn replace_with(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let replaced = write_new(&temporary, mode, write).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // The first error is the one worth telling.
        let _ = fs::remove_file(&temporary);
        return replaced;
    }
    // Without this the new name may be forgotten when the power goes.
    File::open(parent(path))?.sync_all()
}

/// Makes the directory that the file at `path` shall live in, if it is missing, with `mode` whatever
/// the umask.
///
/// # Errors
/// If the file system refuses.
pub fn create_parent(path: &Path, mode: u32) -> io::Result<()> {
    let directory = parent(path);
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(mode))
}

/// Writes a file and waits until its content is on the disk. What a killed process left at `path` is
/// overwritten.
fn write_new(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    let mut file = BufWriter::new(file);
    write(&mut file)?;
    file.into_inner().map_err(IntoInnerError::into_error)?.sync_all()
}

/// In the same directory, for a file is only renamed within its file system.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let hidden = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    Ok(path.with_file_name(hidden))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let taken = directory.path().join("taken");
        fs::create_dir(&taken).unwrap();
        assert!(replace(&taken, b"new", 0o644).is_err());
        assert!(taken.is_dir());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn left_overs_of_a_killed_process_do_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(temporary_beside(&path).unwrap(), "something longer than the content").unwrap();
        replace(&path, b"content", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
