//! The executable: environment and standard input in, one JSON document and an exit code out.

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::path::Path;
use std::process::ExitCode;

use cni_plugin::arena::Arena;
use cni_plugin::error::chain;
use cni_plugin::hand_over;
use cni_plugin::install::{Install, InstallError};
use cni_plugin::plugin::Plugin;
use cni_plugin::process::{self, Outcome};
use cni_plugin::uninstall::{Uninstall, UninstallError};

#[global_allocator]
static MEMORY: Arena = Arena::new();

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    let mut arguments = std::env::args_os().map(|text| text.to_string_lossy().into_owned());
    let program = arguments.next().unwrap_or_default();
    // Runtimes give no arguments.
    match arguments.next().as_deref() {
        Some("install") => return install(&arguments.collect::<Vec<_>>()),
        Some("uninstall") => return uninstall(&arguments.collect::<Vec<_>>()),
        Some("hand-over") => return hand_over(),
        _ => {}
    }
    let variable = |name: &str| Some(std::env::var_os(name)?.to_string_lossy().into_owned());
    finish(&process::run(Plugin::of_program(Path::new(&program)), variable, io::stdin()))
}

const BAD_USAGE: u8 = 2;
const THIS: &str = "/proc/self/exe";

fn install(arguments: &[String]) -> ExitCode {
    let installed = Install::parse(arguments).and_then(|install| install.run(Path::new(THIS)));
    let Err(error) = installed else { return ExitCode::SUCCESS };
    let _nobody_is_left_to_tell = writeln!(io::stderr(), "{}", chain(&error));
    match error {
        InstallError::Usage | InstallError::Unknown(_) => BAD_USAGE.into(),
        InstallError::Write { .. } => ExitCode::FAILURE,
    }
}

fn uninstall(arguments: &[String]) -> ExitCode {
    let removed = Uninstall::parse(arguments).and_then(|uninstall| uninstall.run(Path::new(THIS)));
    let error = match removed {
        Ok(commands) => {
            let _nobody_is_left_to_tell = io::stdout().write_all(commands.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    let _nobody_is_left_to_tell = writeln!(io::stderr(), "{}", chain(&error));
    match error {
        UninstallError::Usage => BAD_USAGE.into(),
        _ => ExitCode::FAILURE,
    }
}

fn hand_over() -> ExitCode {
    let (text, code) = match hand_over::run() {
        Ok(report) => (report.to_string(), ExitCode::SUCCESS),
        Err(error) => (format!("{}\n", chain(&error)), ExitCode::FAILURE),
    };
    let _nobody_is_left_to_tell = write!(io::stderr(), "{text}");
    code
}

/// Writes what is to be told. Nobody is left to tell if that fails.
fn finish(outcome: &Outcome) -> ExitCode {
    let written = match outcome {
        Outcome::Success(document) | Outcome::Failure(document) => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(document.as_bytes()).and_then(|()| stdout.flush())
        }
        Outcome::About(text) => io::stderr().write_all(text.as_bytes()),
    };
    match outcome {
        Outcome::Success(_) | Outcome::About(_) if written.is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A runtime expects a document, whatever happens.
#[expect(clippy::exit, reason = "the release build aborts when the hook returns")]
fn report_panic(panic: &PanicHookInfo<'_>) {
    let _failure = finish(&process::internal_error(&panic.to_string()));
    std::process::exit(1);
}
