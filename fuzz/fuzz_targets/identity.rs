//! The archive with a guest's identity, with anything in it: the kernel unpacks the same files from it, and the agent reads
//! the same configuration.
#![no_main]

use cpio::newc;
use libfuzzer_sys::fuzz_target;
use msb::identity::Identity;
use msb_fuzz::Input;
use msb_protocol::identity::GuestConfig;

/// Names and contents of the files, as the kernel reads them (Documentation/driver-api/early-userspace/buffer-format.rst).
fn unpacked(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    loop {
        let mut reader = newc::Reader::new(archive).expect("a header");
        if reader.entry().is_trailer() {
            return files;
        }
        assert_eq!(reader.entry().mode() & 0o077, 0, "for root alone");
        let mut contents = Vec::new();
        std::io::copy(&mut reader, &mut contents).expect("contents");
        files.push((reader.entry().name().to_owned(), contents));
        archive = reader.finish().expect("the next header");
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let (key, keys) = (input.byte().into(), input.word().into());
    let (host_key, authorized_keys) = (input.take(key), input.take(keys));
    let config: GuestConfig = serde_json::from_slice(input.take(usize::MAX)).unwrap_or_default();
    let identity = Identity {
        host_key,
        authorized_keys,
        config: &config,
    };
    let archive = identity.to_archive();
    assert_eq!(archive.len() % 4, 0, "the next archive must begin aligned");
    let files = unpacked(&archive);
    let contents: Vec<&[u8]> = files.iter().map(|(_, contents)| &contents[..]).collect();
    let [directory, host_key_read, keys_read, config_read] = contents[..] else {
        panic!("{} files", files.len());
    };
    assert!(directory.is_empty() && files.iter().all(|(name, _)| name.starts_with(".msb")));
    assert!(host_key_read == host_key && keys_read == authorized_keys);
    let read: GuestConfig = serde_json::from_slice(config_read).expect("it was written by us");
    assert_eq!(read, config);
});
