//! Flags and variables of the environment.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flanneld::foreign_bytes::command_line(bytes));
