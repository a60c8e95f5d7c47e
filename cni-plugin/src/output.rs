//! How documents for the runtime look.

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::PrettyFormatter;

use crate::version::Version;

/// Writes a document as the Go library does: indented by four spaces, without a line end.
pub fn pretty(document: &impl Serialize) -> String {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    document
        .serialize(&mut Serializer::with_formatter(&mut text, formatter))
        .expect("all keys are text and memory takes every byte");
    String::from_utf8(text).expect("JSON is text")
}

/// Writes the answer to VERSION of a plugin that speaks all versions from `oldest` on, on a line of
/// its own.
pub fn versions(oldest: Version) -> String {
    let supported_versions = Version::since(oldest).map(Version::as_str).collect();
    let answer = Versions { cni_version: Version::NEWEST.as_str(), supported_versions };
    let answer = serde_json::to_string(&answer).expect("memory takes every byte");
    format!("{answer}\n")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    cni_version: &'static str,
    supported_versions: Vec<&'static str>,
}
