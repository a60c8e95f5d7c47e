//! The executable; everything is in the library, where fuzzing reaches it too.

use std::process::ExitCode;

/// That of musl takes a quarter of the time of a large pass.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    flanneld::run(std::env::args().skip(1).collect())
}
