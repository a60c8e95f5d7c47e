//! flanneld: leases a subnet for this node's pods and keeps the kernel equal to the cluster's
//! leases.

mod cli;
mod config;
mod external_interface;
mod family;
mod on_link;

mod lease;
mod store;

mod backend;
mod rules;

mod cleanup;
mod lease_command;

mod agent;
mod former;
mod glance;
mod kernel;
mod kernel_release;
mod neighbour_limits;
mod notifications;
mod reconciler;
mod setup;

mod clock;
mod errors;
#[cfg(any(test, fuzzing))]
pub mod foreign_bytes;
mod health;
mod install;
mod pods;
mod readdress;
mod reconfigure;
mod renewal;
mod report;
mod retry;
mod secrets;
mod shutdown;
mod tally;
mod trouble;

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;

use tracing::level_filters::LevelFilter;
use tracing::{error, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::Command;

/// The whole program, from the name that it was called by and its arguments to the status that it
/// ends with.
pub fn run(name: &Path, arguments: Vec<String>) -> ExitCode {
    match install::by_name(name, &arguments) {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(error)) => {
            say(&errors::chain(&error));
            return ExitCode::FAILURE;
        }
        None => {}
    }
    let hidden = secrets::hide(&arguments);
    let options = match cli::parse(arguments, |name| std::env::var(name).ok()) {
        Ok(Command::Run(options)) => *options,
        Ok(Command::Lease(command)) => {
            start_log(command.options.verbosity);
            return answer(lease_command::run(*command));
        }
        Ok(Command::Cleanup(cleanup)) => return answer(cleanup.run()),
        Ok(Command::Version) => {
            say(&format!("flanneld {}", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        Ok(Command::Help) => {
            say(&cli::usage());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            say(&format!("flanneld: {error}"));
            return ExitCode::from(2);
        }
    };
    start_log(options.verbosity);
    if let Err(error) = hidden {
        warn!(%error, "the password stays where other users of this machine may see it");
    }
    match agent::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{}", errors::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints what came of a command that ends by itself.
fn answer(result: Result<String, impl std::error::Error>) -> ExitCode {
    match result {
        Ok(answer) => {
            print(&answer);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("flanneld: {}", errors::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) {
    // Whoever closed the pipe does not want to read on.
    let _closed = std::io::stdout().write_all(text.as_bytes());
}

/// Version, usage and errors of usage go where flannel puts them.
#[expect(clippy::print_stderr, reason = "this is the answer to the command line, not a log")]
fn say(text: &str) {
    eprintln!("{}", text.trim_end());
}

fn start_log(verbosity: i64) {
    let level = match verbosity {
        ..2 => LevelFilter::INFO,
        2..4 => LevelFilter::DEBUG,
        4.. => LevelFilter::TRACE,
    };
    // Libraries tell about frames and connections; that is of no use, and may hold secrets.
    let ours_only = Targets::new().with_target("flanneld", level).with_default(LevelFilter::WARN);
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(to_stderr).with(ours_only).init();
}
