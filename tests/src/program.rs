//! The programs that are run: those under test, and those that fixtures are made with.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

/// Which Debian package a program is in; shared with `requirements.sh`.
const REQUIREMENTS: &str = include_str!("../requirements.txt");

/// The node agent that is tested: `flanneld` from this build, or what `TEST_FLANNELD` names.
///
/// # Panics
/// If it has not been built.
pub fn flanneld() -> PathBuf {
    under_test("flanneld", "TEST_FLANNELD", BUILD)
}

/// The CNI plugin that is tested: `flannel` from this build, or what `TEST_FLANNEL` names.
///
/// # Panics
/// If it has not been built.
pub fn flannel() -> PathBuf {
    under_test("flannel", "TEST_FLANNEL", BUILD)
}

/// The container image that is tested, an OCI archive: that of this build, or what `TEST_IMAGE`
/// names.
///
/// # Panics
/// If it has not been built.
pub fn image() -> PathBuf {
    under_test("image/flannel.tar", "TEST_IMAGE", "make test-image")
}

/// A command for a program of the system, looked up where daemons look: also in `sbin`.
///
/// # Panics
/// If it is not installed; the text names the Debian package.
pub fn installed(program: &str) -> Command {
    let path = find(program).unwrap_or_else(|| panic!("{}", missing(program)));
    let mut command = Command::new(path);
    command.env("PATH", search_path());
    command
}

/// Where `program` is installed, if it is; a `program` with slashes must exist as it stands, or
/// below the directory that `requirements.sh` unpacks other suites of Debian into.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/suites").join(program);
        return Some(unpacked).filter(|path| is_file(path));
    }
    let path = search_path();
    env::split_paths(&path).map(|directory| directory.join(program)).find(|path| is_file(path))
}

/// Says that a program is missing and which Debian package has it.
pub fn missing(program: &str) -> String {
    let package = REQUIREMENTS.lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        (columns.next() == Some(program)).then(|| columns.next()).flatten()
    });
    match package {
        Some(package) if package.contains('/') => format!(
            "{program} is missing; it is in the Debian package {package}: tests/requirements.sh test"
        ),
        Some(package) => format!(
            "{program} is missing; it is in the Debian package {package}: sudo apt-get install {package}"
        ),
        None => format!("{program} is missing"),
    }
}

/// The `PATH` that everything in a sandbox runs with.
pub fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Runs a command to its end and returns what it wrote to its standard output.
///
/// # Panics
/// If it fails; the text holds the command and all its output.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = outcome(command);
    assert!(output.status.success(), "{}", describe(command, &output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end and returns its output and status, whatever that is.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn outcome(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{} cannot be run: {e}", line(command)))
}

/// A command and what came of it, for a failure.
pub fn describe(command: &Command, output: &Output) -> String {
    let mut text = format!("{}: {}", line(command), output.status);
    for stream in [&output.stdout, &output.stderr] {
        if !stream.is_empty() {
            let _ = write!(text, "\n{}", String::from_utf8_lossy(stream).trim_end());
        }
    }
    text
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

const BUILD: &str = "cargo build --workspace";

fn under_test(name: &str, variable: &str, build: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        return fs::canonicalize(&path)
            .unwrap_or_else(|e| panic!("{variable}={}: {e}", path.display()));
    }
    let this = env::current_exe().expect("/proc is mounted");
    // Tests are one directory below the programs of the same build, binaries beside them.
    let beside = this.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    beside
        .into_iter()
        .find(|path| is_file(path))
        .unwrap_or_else(|| panic!("{name} has not been built beside {}: {build}", this.display()))
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file())
}
