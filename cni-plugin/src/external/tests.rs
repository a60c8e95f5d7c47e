//! Which program is run, and what comes back from it.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_plugin_is_the_first_regular_file_of_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    for name in ["empty", "one", "two", "one/calico", "links"] {
        fs::create_dir(place(name)).unwrap();
    }
    fs::write(place("two/calico"), "").unwrap();
    symlink(place("two/calico"), place("links/calico")).unwrap();
    let find = |directories: &[&str]| {
        let places = directories.iter().map(|name| place(name).display().to_string());
        External::find("calico", &places.collect::<Vec<_>>().join(":"))
    };
    let found = |name: &str| External { program: place(name) };
    // A directory of that name is no plugin.
    assert_eq!(find(&["empty", "one", "two"]).unwrap(), found("two/calico"));
    assert_eq!(find(&["links", "two"]).unwrap(), found("links/calico"));
    let missing = find(&["empty", "one"]).unwrap_err().to_string();
    let (empty, one) = (place("empty"), place("one"));
    let expected =
        format!("failed to find plugin \"calico\" in path [{} {}]", empty.display(), one.display());
    assert_eq!(missing, expected);
}

#[test]
fn a_name_does_not_lead_out_of_the_directories() {
    let table = [
        ("", "/bin", "no plugin name provided"),
        ("../bin/sh", "/bin", "invalid plugin name: ../bin/sh"),
        ("/bin/sh", "/bin", "invalid plugin name: /bin/sh"),
        ("..", "/bin", "invalid plugin name: .."),
        ("sh\0", "/bin", "invalid plugin name: sh\0"),
        ("sh", "", "no paths provided"),
    ];
    for (name, path, expected) in table {
        assert_eq!(External::find(name, path).unwrap_err().to_string(), expected);
    }
}
