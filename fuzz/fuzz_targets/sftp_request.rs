//! What a client sends to the SFTP server of a guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|packet: &[u8]| msb_agent::sftp::parse_request(packet));
