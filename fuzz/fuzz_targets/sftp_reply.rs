//! What the SFTP server of a guest sends to the host's client.
#![no_main]

libfuzzer_sys::fuzz_target!(|packet: &[u8]| msb_ssh::sftp::parse_reply(packet));
