//! Which kernel this is, for the few things that depend on it.

use std::fs;

/// Returns the release of the running kernel, such as `6.1.0-40-amd64`.
pub(crate) fn running() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Whether a release, such as `5.4.0-150-generic`, is one before this version. One that makes no
/// sense is not.
pub(crate) fn is_before(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < version,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_first_two_numbers() {
        for (release, before) in [
            ("4.19.0-27-amd64", true),
            ("5.4.0-150-generic", true),
            ("5.7.0", false),
            ("5.10.0-32-amd64", false),
            ("6.1.0", false),
            ("", false),
            ("next", false),
        ] {
            assert_eq!(is_before(release, (5, 7)), before, "{release}");
        }
    }
}
