//! A file among the reservations of addresses.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
    cni_plugin::foreign_bytes::reservation(directory.path(), bytes)
});
