//! Renders the chart as Helm does: Go templates, with those of Helm's functions that it uses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gtmpl::{Context, FuncError, Template, Value as Go};
use serde_json::{Map, Value, json};
use yaml_rust2::{YamlEmitter, YamlLoader};

use super::yaml;

/// Returns the objects that the chart makes of its values with some of them changed.
pub(crate) fn render(change: impl FnOnce(&mut Value)) -> Vec<Value> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/helm/flannel");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let mut values = yaml::parse(&read(&chart.join("values.yaml"))).remove(0);
    change(&mut values);
    let dot = go(&json!({ "Values": values, "Release": { "Namespace": "kube-flannel" } }));
    let templates = fs::read_dir(chart.join("templates")).unwrap();
    let objects = templates.flat_map(|file| {
        let text = rendered(&read(&file.unwrap().path()), &dot);
        yaml::parse(&text)
    });
    objects.collect()
}

fn rendered(text: &str, dot: &Go) -> String {
    let mut template = Template::default();
    template.add_func("toJson", |arguments| Ok(json_text(&arguments[0]).into()));
    template.add_func("quote", |arguments| Ok(json_text(&arguments[0]).into()));
    template.add_func("toYaml", |arguments| Ok(yaml_text(&arguments[0]).into()));
    template.add_func("indent", indent);
    template.add_func("join", join);
    template.add_func("fail", |arguments| Err(FuncError::Generic(arguments[0].to_string())));
    template.parse(text).unwrap_or_else(|e| panic!("{e} in:\n{text}"));
    template.render(&Context::from(dot.clone())).unwrap_or_else(|e| panic!("{e} in:\n{text}"))
}

fn indent(arguments: &[Go]) -> Result<Go, FuncError> {
    let [Go::Number(width), Go::String(text)] = arguments else {
        return Err(FuncError::Generic("indent WIDTH TEXT".to_owned()));
    };
    let space = " ".repeat(usize::try_from(width.as_u64().unwrap_or(0)).unwrap());
    let lines: Vec<_> = text.trim_end().lines().map(|line| format!("{space}{line}")).collect();
    Ok(lines.join("\n").into())
}

fn join(arguments: &[Go]) -> Result<Go, FuncError> {
    let [Go::String(between), Go::Array(items)] = arguments else {
        return Err(FuncError::Generic("join BETWEEN LIST".to_owned()));
    };
    Ok(items.iter().map(ToString::to_string).collect::<Vec<_>>().join(between).into())
}

fn json_text(value: &Go) -> String {
    json_value(value).to_string()
}

fn yaml_text(value: &Go) -> String {
    let documents = YamlLoader::load_from_str(&json_text(value)).unwrap();
    let mut text = String::new();
    YamlEmitter::new(&mut text).dump(&documents[0]).unwrap();
    text.trim_start_matches("---\n").to_owned()
}

fn go(value: &Value) -> Go {
    match value {
        Value::Null => Go::Nil,
        Value::Bool(boolean) => Go::Bool(*boolean),
        Value::Number(number) => Go::from(number.as_i64().unwrap()),
        Value::String(text) => Go::from(text.as_str()),
        Value::Array(items) => Go::Array(items.iter().map(go).collect()),
        Value::Object(fields) => {
            Go::Object(fields.iter().map(|(name, value)| (name.clone(), go(value))).collect())
        }
    }
}

fn json_value(value: &Go) -> Value {
    match value {
        Go::Nil | Go::NoValue | Go::Function(_) => Value::Null,
        Go::Bool(boolean) => Value::from(*boolean),
        Go::Number(number) => Value::from(number.as_i64().unwrap()),
        Go::String(text) => Value::from(text.as_str()),
        Go::Array(items) => items.iter().map(json_value).collect(),
        Go::Object(fields) | Go::Map(fields) => {
            let fields: BTreeMap<_, _> = fields.clone().into_iter().collect();
            let field = |(name, value): (String, Go)| (name, json_value(&value));
            fields.into_iter().map(field).collect::<Map<_, _>>().into()
        }
    }
}
