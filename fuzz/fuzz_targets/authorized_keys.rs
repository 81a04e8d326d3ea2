//! Whatever an `authorized_keys` file holds, it is read, and a bad line spoils only itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_agent::authorized_keys::AuthorizedKeys;

fuzz_target!(|contents: &[u8]| {
    let keys = AuthorizedKeys::parse(contents);
    let lines = contents.split(|byte| *byte == b'\n').count();
    assert!(keys.refused().len() <= lines);
});
