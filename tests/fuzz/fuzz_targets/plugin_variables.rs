//! `CNI_ARGS` and the other variables of the plugins.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni_plugin::foreign_bytes::variables(bytes));
