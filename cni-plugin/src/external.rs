//! Plugins that are not in this file: looked for in `CNI_PATH` and run as processes, the way the
//! specification has it (CNI specification, section 4, "Plugin Delegation").
//!
//! A delegate gets the environment of this process with the variables of the call, the configuration
//! on its standard input, and this process's standard error.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus, Stdio};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::invocation::{Call, Command, NetworkCall};
use crate::result::AddResult;

/// A plugin that somebody else made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    program: PathBuf,
}

/// Why a plugin did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// The configuration does not name one.
    #[error("no plugin name provided")]
    NoName,
    /// The name would lead out of the directories of plugins.
    #[error("invalid plugin name: {0}")]
    Name(String),
    /// It is not known where plugins are.
    #[error("no paths provided")]
    NoPaths,
    /// No directory has it.
    #[error("failed to find plugin {name:?} in path [{}]", path.replace(':', " "))]
    NotFound {
        /// Its name.
        name: String,
        /// The value of `CNI_PATH`.
        path: String,
    },
    /// It cannot be run.
    #[error("cannot run plugin {}", program.display())]
    Run {
        /// Where it is.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says itself what went wrong.
    #[error("{msg}")]
    Reported {
        /// One of the specification's codes, or one of its own.
        code: u32,
        /// What went wrong.
        msg: String,
        /// What else there is to say.
        details: String,
    },
    /// It failed, and what it says about that is not what a plugin says.
    #[error("plugin {} failed ({status}) and said {said:?}", program.display())]
    Unreported {
        /// Where it is.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard output.
        said: String,
    },
    /// Its result is not one.
    #[error("result of plugin {}", program.display())]
    Result {
        /// Where it is.
        program: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// What a plugin writes when it fails.
#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl External {
    /// Looks for the plugin `name` in the directories of `path`, which are separated by colons.
    ///
    /// # Errors
    /// If there is no regular file of that name, or if the name could be a path.
    pub fn find(name: &str, path: &str) -> Result<Self, ExternalError> {
        if name.is_empty() {
            return Err(ExternalError::NoName);
        }
        if name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(ExternalError::Name(name.to_owned()));
        }
        if path.is_empty() {
            return Err(ExternalError::NoPaths);
        }
        let directories = path.split(':').filter(|directory| !directory.is_empty());
        let mut programs = directories.map(|directory| Path::new(directory).join(name));
        let program = programs.find(|program| program.is_file());
        let not_found = || ExternalError::NotFound { name: name.to_owned(), path: path.to_owned() };
        program.map(|program| Self { program }).ok_or_else(not_found)
    }

    /// Attaches the sandbox at `netns`, and returns what came of it.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn add(&self, call: &Call, netns: &Path) -> Result<AddResult, Error> {
        let said = self.attachment(Command::Add, call, netns.as_os_str())?;
        let invalid = |source| ExternalError::Result { program: self.program.clone(), source };
        // Nothing at all stands for an empty result.
        let text = if said.trim_ascii().is_empty() { b"null" } else { said.as_slice() };
        let result: Option<Map<String, Value>> = serde_json::from_slice(text).map_err(invalid)?;
        let Some(result) = result else { return Ok(AddResult::default()) };
        Ok(AddResult::decode_any(call.version, result.into())?)
    }

    /// Undoes that.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn del(&self, call: &Call, netns: Option<&Path>) -> Result<(), ExternalError> {
        let netns = netns.map_or(OsStr::new(""), Path::as_os_str);
        self.attachment(Command::Del, call, netns).map(drop)
    }

    /// Verifies that it is still so.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn check(&self, call: &Call, netns: &Path) -> Result<(), ExternalError> {
        self.attachment(Command::Check, call, netns.as_os_str()).map(drop)
    }

    /// Lets it remove what attachments left behind that are gone.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn gc(&self, call: &NetworkCall) -> Result<(), ExternalError> {
        self.run(Command::Gc, &[("CNI_PATH", call.path.as_ref())], &call.config).map(drop)
    }

    /// Asks it whether it could serve an ADD.
    ///
    /// # Errors
    /// If it could not.
    pub fn status(&self, call: &NetworkCall) -> Result<(), ExternalError> {
        self.run(Command::Status, &[("CNI_PATH", call.path.as_ref())], &call.config).map(drop)
    }

    fn attachment(
        &self,
        command: Command,
        call: &Call,
        netns: &OsStr,
    ) -> Result<Vec<u8>, ExternalError> {
        let variables = [
            ("CNI_CONTAINERID", call.attachment.container.as_str().as_ref()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", call.attachment.if_name.as_str().as_ref()),
            ("CNI_ARGS", call.args.as_ref()),
            ("CNI_PATH", call.path.as_ref()),
        ];
        self.run(command, &variables, &call.config)
    }

    fn run(
        &self,
        command: Command,
        variables: &[(&str, &OsStr)],
        config: &Map<String, Value>,
    ) -> Result<Vec<u8>, ExternalError> {
        let failed = |source| ExternalError::Run { program: self.program.clone(), source };
        let mut child = process::Command::new(&self.program)
            .env("CNI_COMMAND", command.as_str())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let config = serde_json::to_vec(config).expect("all keys are text");
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that fails early may never read it.
            let _it_says_what_it_lacks = stdin.write_all(&config);
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failure(output.status, &output.stdout))
    }

    fn failure(&self, status: ExitStatus, said: &[u8]) -> ExternalError {
        match serde_json::from_slice(said) {
            Ok(Report { code, msg, details }) => ExternalError::Reported { code, msg, details },
            Err(_) => ExternalError::Unreported {
                program: self.program.clone(),
                status,
                said: String::from_utf8_lossy(said).into_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
