//! `flanneld cleanup …`: what is asked for.

use super::{Command, Typed, UsageError};
use crate::cleanup::Cleanup;

pub(super) const USAGE: &str = "usage: flanneld cleanup [--dry-run] [--force] [--subnet-file FILE]";

/// Reads what follows the word `cleanup`.
pub(super) fn parse(
    arguments: impl Iterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Command, UsageError> {
    let (mut dry_run, mut force) = (false, false);
    let mut rest = Vec::new();
    for argument in arguments {
        match argument.trim_start_matches('-') {
            "dry-run" => dry_run = true,
            "force" => force = true,
            _ => rest.push(argument),
        }
    }
    if let Some(word) = rest.first().filter(|argument| !argument.starts_with('-')) {
        return Err(UsageError::Cleanup(word.clone()));
    }
    let Some(mut typed) = Typed::from_arguments(rest.into_iter())? else {
        return Ok(Command::Help);
    };
    typed.add_environment(environment);
    let subnet_file = typed.text("subnet-file").into();
    Ok(Command::Cleanup(Cleanup { dry_run, force, subnet_file }))
}
