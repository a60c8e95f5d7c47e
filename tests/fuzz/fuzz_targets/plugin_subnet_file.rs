//! The file that the agent writes for the plugin.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni_plugin::foreign_bytes::subnet_file(bytes));
