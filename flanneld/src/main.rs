//! The executable; everything is in the library, where fuzzing reaches it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    flanneld::run(std::env::args().skip(1).collect())
}
