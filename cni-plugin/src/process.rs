//! One call of the plugin, without the process around it.

use std::io::Read;

use crate::command;
use crate::error::{Error, Failure};
use crate::invocation::{Invocation, InvocationError};
use crate::output::pretty;
use crate::plugin::Plugin;
use crate::version::Version;

/// What is to be written, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A document on standard output, or nothing; the plugin did what it was asked to do.
    Success(String),
    /// A document on standard output; the plugin did not.
    Failure(String),
    /// A text on standard error, for somebody who runs the plugin by hand.
    About(String),
}

/// Serves one call of a plugin, with the variables of the environment and the configuration to be
/// read.
pub fn run(plugin: Plugin, variable: impl Fn(&str) -> Option<String>, stdin: impl Read) -> Outcome {
    let invocation = match Invocation::collect(&variable, stdin) {
        Ok(invocation) => invocation,
        Err(InvocationError::Missing(_)) if is_by_hand(&variable) => {
            return Outcome::About(about(plugin));
        }
        Err(error) => return failure(&error.into(), Version::NEWEST),
    };
    let version = invocation.version();
    let request = invocation.request(plugin.oldest_version()).map_err(Error::from);
    let document = request.and_then(|request| command::run(plugin, &request));
    document.map_or_else(|error| failure(&error, version), Outcome::Success)
}

/// The document for a defect of the plugin.
pub fn internal_error(text: &str) -> Outcome {
    Outcome::Failure(pretty(&Failure::internal(text)))
}

fn failure(error: &Error, version: Version) -> Outcome {
    Outcome::Failure(pretty(&error.failure(version)))
}

fn is_by_hand(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("CNI_COMMAND").is_none_or(|command| command.is_empty())
}

/// Monitoring scripts read this.
fn about(plugin: Plugin) -> String {
    let versions: Vec<_> = Version::since(plugin.oldest_version()).map(Version::as_str).collect();
    let versions = versions.join(", ");
    format!(
        "CNI Plugin {plugin} version v{} ({}/{})\nCNI protocol versions supported: {versions}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        go_architecture(),
    )
}

/// As the other plugins, which are Go programs, call it.
const fn go_architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(variables: &[(&str, &str)], stdin: &str) -> Outcome {
        let variables = variables.to_vec();
        let lookup = |name: &str| {
            let value = variables.iter().find(|(key, _)| *key == name)?.1;
            Some(value.to_owned())
        };
        run(Plugin::Flannel, lookup, stdin.as_bytes())
    }

    #[test]
    fn by_hand_it_tells_about_itself() {
        let Outcome::About(text) = run_with(&[], "") else { panic!("not about itself") };
        assert!(text.starts_with("CNI Plugin flannel version v"), "{text}");
        let versions =
            "\nCNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n";
        assert!(text.ends_with(versions), "{text}");
    }

    #[test]
    fn version_is_one_line() {
        let expected = concat!(
            r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","#,
            r#""0.4.0","1.0.0","1.1.0"]}"#,
            "\n",
        );
        let outcome = run_with(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion": "0.2.0"}"#);
        assert_eq!(outcome, Outcome::Success(expected.to_owned()));
    }

    #[test]
    fn errors_are_documents_in_the_version_of_the_configuration() {
        let variables = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/opt/cni/bin")];
        let expected = "{\n    \"cniVersion\": \"0.4.0\",\n    \"code\": 1,\n    \
                        \"msg\": \"config version does not allow STATUS\"\n}";
        let outcome = run_with(&variables, r#"{"cniVersion": "0.4.0", "name": "a"}"#);
        assert_eq!(outcome, Outcome::Failure(expected.to_owned()));
    }

    #[test]
    fn a_defect_is_a_document_too() {
        let Outcome::Failure(text) = internal_error("oh") else { panic!("not a failure") };
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["code"], 999);
        assert_eq!(document["msg"], "oh");
    }
}
