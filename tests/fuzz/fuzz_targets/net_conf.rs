//! Network configurations.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flanneld::foreign_bytes::net_conf(bytes));
