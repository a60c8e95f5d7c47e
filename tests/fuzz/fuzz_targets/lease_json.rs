//! Values of leases.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flanneld::foreign_bytes::lease_json(bytes));
