//! What the system bus sends to the plugin.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cni_plugin::foreign_bytes::bus_message(bytes));
