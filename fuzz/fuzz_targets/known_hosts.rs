//! A user's own `known_hosts` with anything in it: lines of other hosts stay as they are, byte for byte.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use msb_ssh::keys::KeyPair;
use msb_ssh::known_hosts;

static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_ed25519("").expect("a key"));

fuzz_target!(|before: &[u8]| {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("known_hosts");
    std::fs::write(&path, before).expect("a file");
    let hosts = ["demo.msb", "0123456789ab.msb"];
    let line = known_hosts::line(&hosts, KEY.public_key()).expect("host names");

    known_hosts::add(&path, &hosts, KEY.public_key()).expect("any file can be added to");
    let added = std::fs::read(&path).expect("the file");
    let others = added.strip_suffix(line.as_bytes()).expect("the line comes last");
    let names_ours = |line: &[u8]| {
        let lower = line.to_ascii_lowercase();
        hosts
            .iter()
            .any(|host| lower.windows(host.len()).any(|window| window == host.as_bytes()))
    };
    let mut left = others.split_inclusive(|byte| *byte == b'\n');
    for old in before.split_inclusive(|byte| *byte == b'\n') {
        if names_ours(old) {
            continue;
        }
        let is_it = |kept: &[u8]| kept == old || kept.strip_suffix(b"\n") == Some(old);
        assert!(left.any(is_it), "a line of another host is gone");
    }

    known_hosts::remove(&path, &hosts).expect("any file can be removed from");
    assert_eq!(std::fs::read(&path).expect("the file"), others);
});
