//! Keeps the etcd password out of what other users can see.
//!
//! Everybody can read the command line of every process. If it holds the password, or the
//! environment does, the program starts itself again with the password in memory of its own, behind
//! a file descriptor, before it does anything else.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const FLAG: &str = "etcd-password";
const VARIABLE: &str = "FLANNELD_ETCD_PASSWORD";
const FILE_VARIABLE: &str = "FLANNELD_ETCD_PASSWORD_FILE";

/// Starts the program again if there is something to hide. Returns if there is not, or if that
/// fails.
///
/// # Errors
/// If it could not be started again; it can work all the same.
pub(crate) fn hide(arguments: &[String]) -> io::Result<()> {
    let (rest, given) = without_password(arguments);
    let variable = std::env::var(VARIABLE).ok().filter(|password| !password.is_empty());
    let Some(password) = given.clone().or(variable) else { return Ok(()) };
    let name = CString::new(FLAG)?;
    let mut file = File::from(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)?);
    file.write_all(password.as_bytes())?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut command = Command::new("/proc/self/exe");
    command.args(rest).env_remove(VARIABLE);
    if given.is_some() || std::env::var_os(FILE_VARIABLE).is_none() {
        command.env(FILE_VARIABLE, path);
    }
    // The descriptor is for the program that takes the place of this one.
    let _descriptor = file.into_raw_fd();
    Err(command.exec())
}

/// Returns the arguments without the password, and the password.
fn without_password(arguments: &[String]) -> (Vec<String>, Option<String>) {
    let mut rest = Vec::new();
    let mut password = None;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let flag = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
        match flag.map(|flag| flag.split_once('=').unwrap_or((flag, ""))) {
            Some((FLAG, value)) if argument.contains('=') => password = Some(value.to_owned()),
            Some((FLAG, _)) => match arguments.next() {
                Some(value) => password = Some(value.clone()),
                // Incomplete: that is for the parser to complain about.
                None => rest.push(argument.clone()),
            },
            _ => rest.push(argument.clone()),
        }
    }
    (rest, password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_password_is_taken_out() {
        for words in ["--etcd-password=x y", "-etcd-password=x y", "--etcd-password|x y"] {
            let arguments = ["-v=1", words, "--ip-masq"].join("|");
            let arguments: Vec<_> = arguments.split('|').map(str::to_owned).collect();
            let (rest, password) = without_password(&arguments);
            assert_eq!(rest, ["-v=1", "--ip-masq"]);
            assert_eq!(password.as_deref(), Some("x y"));
        }
        let incomplete = ["--etcd-password".to_owned()];
        assert_eq!(without_password(&incomplete), (incomplete.to_vec(), None));
    }
}
