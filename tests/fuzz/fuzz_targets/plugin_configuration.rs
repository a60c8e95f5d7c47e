//! Standard input of every plugin.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni_plugin::foreign_bytes::configuration(bytes));
