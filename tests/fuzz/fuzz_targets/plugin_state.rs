//! What the plugin keeps from ADD to DEL.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
    cni_plugin::foreign_bytes::state(directory.path(), bytes)
});
