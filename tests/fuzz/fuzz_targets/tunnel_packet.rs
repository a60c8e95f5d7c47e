//! Packets and segments of the udp backend.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flanneld::foreign_bytes::tunnel_packet(bytes));
