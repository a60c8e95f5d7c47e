//! What Kubernetes takes for its objects: `kubernetes.json` is what its API server (1.20) says of
//! those that manifests of a pod network are made of, without descriptions. Fields have not gone
//! since. An object is held against it strictly: a field that the schema does not know is an error,
//! as the server itself would only drop it.

use serde_json::{Map, Value};

/// Returns what is wrong with an object, each with the path of the field.
pub(crate) fn problems(object: &Value) -> Vec<String> {
    let schemas: Map<String, Value> =
        serde_json::from_str(include_str!("kubernetes.json")).unwrap();
    let kind = object["kind"].as_str().unwrap_or_default();
    let mut check = Check { schemas, problems: Vec::new() };
    match check.schemas.get(kind).cloned() {
        Some(schema) => check.value(kind, object, &schema),
        None => check.problems.push(format!("there is no kind {kind:?}")),
    }
    check.problems
}

struct Check {
    schemas: Map<String, Value>,
    problems: Vec<String>,
}

impl Check {
    fn value(&mut self, path: &str, value: &Value, schema: &Value) {
        if let Some(name) = schema["$ref"].as_str() {
            let schema = self.schemas[name].clone();
            return self.value(path, value, &schema);
        }
        // Where the type may vary, the format says how.
        let fits = match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("string"), Some("int-or-string")) => value.is_string() || value.is_i64(),
            (Some("string"), _) => value.is_string(),
            (Some("integer"), _) => value.is_i64(),
            (Some("boolean"), _) => value.is_boolean(),
            (Some("array"), _) => value.is_array(),
            (Some("object"), _) => value.is_object(),
            _ => true,
        };
        if !fits {
            return self.problems.push(format!("{path}: {value} is no {}", schema["type"]));
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            self.value(&format!("{path}[{index}]"), item, &schema["items"]);
        }
        if let Some(fields) = value.as_object() {
            self.fields(path, fields, schema);
        }
    }

    fn fields(&mut self, path: &str, fields: &Map<String, Value>, schema: &Value) {
        for (name, value) in fields {
            let any = schema.get("additionalProperties");
            match schema["properties"].get(name).or(any) {
                Some(schema) => self.value(&format!("{path}.{name}"), value, schema),
                None => self.problems.push(format!("{path} has no field {name}")),
            }
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                self.problems.push(format!("{path} lacks {name}"));
            }
        }
    }
}
