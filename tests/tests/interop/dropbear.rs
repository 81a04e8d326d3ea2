//! Dropbear's client.

use std::fs;
use std::process::Stdio;

use msb_tests::{finish, finish_with_input, sha256};

use crate::fixture::Fixture;

pub(crate) fn commands(fixture: &Fixture) {
    let key = fixture.local("dropbear_key");
    let mut convert = fixture.client("dropbearconvert", "dropbear-bin");
    convert
        .args(["openssh", "dropbear"])
        .arg(&fixture.server.identity)
        .arg(&key);
    finish(&mut convert).expect(0);
    // It knows hosts only from the file in its home directory.
    let home = fixture.local("dropbear_home");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    let pinned = format!("{} {}\n", fixture.server.host, fixture.server.host_key().trim());
    fs::write(home.join(".ssh/known_hosts"), pinned).unwrap();
    let client = |arguments: &[&str]| {
        // Without a terminal, a question is a failure and no hang.
        let mut client = fixture.client("setsid", "util-linux");
        crate::fixture::require("dbclient", "dropbear-bin");
        client
            .args(["--wait", "dbclient", "-i"])
            .arg(&key)
            .arg("-J")
            .arg(&fixture.server.bridge);
        client.args(arguments).env("HOME", &home);
        client
    };

    let done = finish(client(&[&fixture.server.login(), "echo out; echo err >&2; exit 6"]).stdin(Stdio::null()));
    let done = done.expect(6);
    assert_eq!((done.text().as_str(), done.stderr.trim()), ("out\n", "err"));

    let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let echoed = finish_with_input(&mut client(&[&fixture.server.login(), "cat"]), bytes.clone()).expect(0);
    assert_eq!(sha256(echoed.stdout), sha256(bytes));
}
