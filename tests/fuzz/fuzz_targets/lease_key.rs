//! Keys under the prefix of the store.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flanneld::foreign_bytes::lease_key(bytes));
