//! How documents for the runtime look.

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::PrettyFormatter;

/// Writes a document as the Go library does: indented by four spaces, without a line end.
pub fn pretty(document: &impl Serialize) -> String {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    document
        .serialize(&mut Serializer::with_formatter(&mut text, formatter))
        .expect("all keys are text and memory takes every byte");
    String::from_utf8(text).expect("JSON is text")
}
