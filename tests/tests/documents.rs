//! What the documents in `config` list, against what is there.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_tests::program;
use flannel_tests::sandbox::sandboxed;
use yaml_rust2::{Yaml, YamlLoader};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name)
}

fn config(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// `GOLDEN=write` writes the document anew.
#[test]
fn every_flag_is_in_the_document() {
    let output = program::outcome(Command::new(program::flanneld()).arg("--help"));
    let table = table(&String::from_utf8(output.stderr).unwrap());
    if std::env::var_os("GOLDEN").is_some() {
        fs::write(path("flags.md"), &table).unwrap();
    }
    assert_eq!(config("flags.md"), table, "GOLDEN=write writes it anew");
}

fn table(help: &str) -> String {
    let mut text = "# Flags of flanneld\n\n\
        As `flanneld --help` prints them; a flag takes one dash or two. What is on the command line \
        counts more than a variable of the environment.\n"
        .to_owned();
    for line in help.lines() {
        if let Some(flag) = line.strip_prefix("  --") {
            let (flag, meaning) = flag.split_once("  ").unwrap();
            let (name, value) = flag.split_once(' ').unwrap_or((flag, ""));
            let variable = format!("FLANNELD_{}", name.to_uppercase().replace(['-', '.'], "_"));
            let variable = if name == "version" { "" } else { &format!("`{variable}`") };
            let flag = format!("--{name} {value}");
            writeln!(text, "| `{}` | {variable} | {} |", flag.trim_end(), meaning.trim()).unwrap();
        } else if let Some(title) = line.strip_suffix(':').filter(|title| !title.contains('.')) {
            write!(text, "\n## {title}\n\n| flag | variable | meaning |\n|---|---|---|\n").unwrap();
        }
    }
    text
}

#[test]
fn every_value_of_the_chart_is_in_the_document() {
    let values = YamlLoader::load_from_str(&config("helm/flannel/values.yaml")).unwrap();
    let mut names = Vec::new();
    add_names("", &values[0], &mut names);
    assert!(names.iter().any(|name| name == "flannel.healthz.port"), "{names:?}");
    let document = config("README.md");
    let is_missing = |name: &&String| !document.contains(&format!("`{name}`"));
    assert_eq!(names.iter().filter(is_missing).collect::<Vec<_>>(), [""; 0]);
}

/// The parts of these are Kubernetes' own.
fn is_whole(name: &str) -> bool {
    name == "flannel.resources" || name.ends_with("Probe")
}

fn add_names(prefix: &str, value: &Yaml, names: &mut Vec<String>) {
    match value.as_hash().filter(|fields| !fields.is_empty() && !is_whole(prefix)) {
        None => names.push(prefix.to_owned()),
        Some(fields) => {
            for (field, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                add_names(&format!("{prefix}{dot}{}", field.as_str().unwrap()), value, names);
            }
        }
    }
}

#[test]
fn systemd_understands_every_line_of_the_unit() {
    sandboxed(|| {
        let installed = "/usr/local/bin/flanneld";
        let unit = config("flanneld.service");
        assert!(unit.contains(&format!("ExecStart={installed} ")), "{unit}");
        // systemd also looks whether the program is there.
        let built = program::flanneld();
        fs::write("/run/flanneld.service", unit.replace(installed, built.to_str().unwrap()))
            .unwrap();
        let mut verify = program::installed("systemd-analyze");
        let output = program::outcome(verify.args(["verify", "--man=no", "/run/flanneld.service"]));
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    });
}
