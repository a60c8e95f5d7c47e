//! The executable; everything is in the library, where fuzzing reaches it too.

use std::path::Path;
use std::process::ExitCode;

/// That of musl takes a quarter of the time of a large pass.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    flanneld::run(Path::new(&name), arguments.collect())
}
