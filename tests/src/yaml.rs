//! YAML as JSON values.

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// Returns the documents of a text.
///
/// # Panics
/// If it is no YAML, or holds what JSON cannot say.
pub fn parse(text: &str) -> Vec<Value> {
    let documents = YamlLoader::load_from_str(text).unwrap_or_else(|e| panic!("{e} in:\n{text}"));
    documents.iter().map(value).filter(|document| !document.is_null()).collect()
}

fn value(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::String(text) => Value::from(text.as_str()),
        Yaml::Integer(number) => Value::from(*number),
        Yaml::Boolean(boolean) => Value::from(*boolean),
        Yaml::Array(items) => items.iter().map(value).collect(),
        Yaml::Hash(fields) => {
            let field = |(name, field)| {
                (Yaml::as_str(name).expect("keys are texts").to_owned(), value(field))
            };
            fields.iter().map(field).collect::<Map<_, _>>().into()
        }
        Yaml::Null => Value::Null,
        other => panic!("{other:?} is not used in manifests"),
    }
}
