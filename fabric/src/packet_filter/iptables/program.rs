//! The programs of iptables: where they are, which variant the host uses, and one run of one.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Error, IpVersion, Variant};

/// No run takes nearly as long, tens of thousands of rules and a busy lock included.
const DEADLINE: Duration = Duration::from_secs(30);
/// Where the programs are if `PATH` leaves them out, as that of a supervisor may.
const ADMINISTRATION: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
/// All that a program gets to see of our environment, in which others keep passwords.
const ENVIRONMENT: [&str; 3] = ["PATH", "XTABLES_LIBDIR", "XTABLES_LOCKFILE"];

impl Variant {
    /// Returns the variant that holds the rules of this host, if it has programs for both: rules in
    /// one of them are not seen by the other, and order between the two is nobody's wish.
    ///
    /// It is decided like `iptables-wrapper` of Kubernetes does: by the chains that kubelet makes
    /// for this purpose, else by the number of rules; else it is what `iptables` stands for.
    ///
    /// # Errors
    /// If a program can be found but not run.
    pub fn in_use() -> Result<Self, Error> {
        let is_there = |variant: Self| find(variant, IpVersion::V4, "save").is_some();
        if !is_there(Self::Nft) || !is_there(Self::Legacy) {
            return Ok(Self::Host);
        }
        let (nft, legacy) = (Self::Nft.all_rules()?, Self::Legacy.all_rules()?);
        match holder(&nft, &legacy) {
            Some(variant) => Ok(variant),
            None => Self::of_host(),
        }
    }

    /// What `iptables-save` without a variant in its name is.
    fn of_host() -> Result<Self, Error> {
        let Some(program) = find(Self::Host, IpVersion::V4, "save") else { return Ok(Self::Nft) };
        let version = run(&program, &["--version"], "")?;
        Ok(if version.contains("nf_tables") { Self::Nft } else { Self::Legacy })
    }

    /// The rules of both IP versions. Nothing is loaded into the kernel for this.
    fn all_rules(self) -> Result<String, Error> {
        let programs = [IpVersion::V4, IpVersion::V6].map(|version| find(self, version, "save"));
        programs.iter().flatten().map(|program| run(program, &[], "")).collect()
    }

    fn infix(self) -> &'static str {
        match self {
            Self::Host => "",
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
        }
    }
}

/// Which of two listings is that of the variant in use.
fn holder(nft: &str, legacy: &str) -> Option<Variant> {
    let has_hint = |rules: &str| {
        let hints = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];
        rules.lines().any(|line| hints.iter().any(|hint| line.starts_with(hint)))
    };
    let count = |rules: &str| rules.lines().filter(|line| line.starts_with('-')).count();
    match (count(nft), count(legacy)) {
        _ if has_hint(nft) => Some(Variant::Nft),
        _ if has_hint(legacy) => Some(Variant::Legacy),
        (nft, legacy) if nft > legacy => Some(Variant::Nft),
        (nft, legacy) if legacy > nft => Some(Variant::Legacy),
        _ => None,
    }
}

/// Finds, for example, `ip6tables-legacy-restore`.
pub(super) fn find(variant: Variant, version: IpVersion, verb: &str) -> Option<PathBuf> {
    let name = format!("{}{}-{verb}", version.program(), variant.infix());
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(env::split_paths(OsStr::new(ADMINISTRATION)));
    let mut candidates = directories.filter(|path| path.is_absolute()).map(|path| path.join(&name));
    candidates.find(|candidate| fs::metadata(candidate).is_ok_and(|file| file.is_file()))
}

/// Runs a program with this input, and returns what it printed.
pub(super) fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, Error> {
    let failed = |source| Error::Run { program: program.to_owned(), source };
    let (status, output, complaints) = run_to_end(program, arguments, input).map_err(failed)?;
    if status.success() {
        return Ok(output);
    }
    let complaints = complaints.lines().map(str::trim).filter(|line| !line.is_empty());
    // What follows is how to ask for help.
    let reason = complaints.take_while(|line| !line.starts_with("Try `")).collect::<Vec<_>>();
    Err(Error::Refused { program: program.to_owned(), status, reason: reason.join("; ") })
}

/// Input and output are files in memory, so that neither side ever waits for the other; the program
/// has ended when nobody holds the other end of its standard error any more.
fn run_to_end(
    program: &Path,
    arguments: &[&str],
    input: &str,
) -> io::Result<(ExitStatus, String, String)> {
    let mut stdin = memory()?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut stdout = memory()?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, env::var_os(name)?))))
        .stdin(stdin)
        .stdout(stdout.try_clone()?)
        .stderr(Stdio::piped())
        .spawn()?;
    let complaints = child.stderr.take().map_or(Ok(String::new()), read_until_closed);
    if complaints.is_err() {
        // Only one that has ended already cannot be killed.
        let _ended = child.kill();
    }
    let status = child.wait()?;
    stdout.rewind()?;
    let mut output = Vec::new();
    stdout.read_to_end(&mut output)?;
    Ok((status, String::from_utf8_lossy(&output).into_owned(), complaints?))
}

fn memory() -> io::Result<File> {
    Ok(memfd_create("iptables", MFdFlags::MFD_CLOEXEC)?.into())
}

/// Reads a stream to its end, for which there is a deadline.
fn read_until_closed(mut stream: ChildStderr) -> io::Result<String> {
    let until = Instant::now() + DEADLINE;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match stream.read(&mut chunk)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            length => bytes.extend_from_slice(&chunk[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variant_is_where_the_rules_are() {
        let rules = |count| "-A INPUT -j ACCEPT\n".repeat(count);
        let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n".to_owned();
        let table = [
            (String::new(), String::new(), None),
            (rules(2), rules(2), None),
            (rules(2), rules(1), Some(Variant::Nft)),
            (rules(1), rules(2), Some(Variant::Legacy)),
            (rules(9), hint.clone(), Some(Variant::Legacy)),
            (hint.clone(), rules(9), Some(Variant::Nft)),
            (hint.clone(), hint, Some(Variant::Nft)),
        ];
        for (nft, legacy, expected) in table {
            assert_eq!(holder(&nft, &legacy), expected, "{nft} {legacy}");
        }
    }

    #[test]
    fn program_gets_input_and_nothing_of_our_environment() {
        let cat = Path::new("/bin/cat");
        let long = "line\n".repeat(100_000);
        assert_eq!(run(cat, &[], &long).unwrap(), long);
        let environment = run(Path::new("/usr/bin/env"), &[], "").unwrap();
        let names = environment.lines().filter_map(|line| line.split('=').next());
        assert!(names.clone().all(|name| ENVIRONMENT.contains(&name)), "{environment}");
        let error = run(cat, &["/no/such/file"], "").unwrap_err().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
        let error = run(Path::new("/no/such/program"), &[], "").unwrap_err();
        assert!(matches!(error, Error::Run { .. }), "{error:?}");
    }
}
