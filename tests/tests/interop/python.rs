//! The SSH libraries of Python, each with a script beside this file.

use msb_tests::{finish, sha256_of_file};

use crate::fixture::Fixture;

pub(crate) fn paramiko(fixture: &Fixture) {
    // What it asks for at once exceeds every window and queue on the way.
    run(fixture, "paramiko", 8 << 20, include_str!("paramiko_client.py"));
}

pub(crate) fn asyncssh(fixture: &Fixture) {
    run(fixture, "asyncssh", 2 << 20, include_str!("asyncssh_client.py"));
}

/// Runs a script that puts a file of `size` bytes and gets it back.
fn run(fixture: &Fixture, library: &str, size: usize, script: &str) {
    let file = fixture.random_file(&format!("{library}-file"), size);
    let back = fixture.local(&format!("{library}-back"));
    let server = &fixture.server;
    // Debian's packages are for Debian's Python, whichever is first on PATH.
    let mut python = server.command("/usr/bin/python3");
    python.args(["-W", "ignore", "-c", script]);
    python.args([&server.host, &server.user, &server.bridge]);
    python.args([&server.identity, &server.known_hosts, &file]);
    python.arg(fixture.remote(library)).arg(&back);
    let done = finish(&mut python);
    assert!(
        !done.stderr.contains("ModuleNotFoundError"),
        "{}: apt-get install python3-{library}, or scripts/test as root",
        done.stderr
    );
    done.expect(0);
    assert_eq!(sha256_of_file(&back), sha256_of_file(&file));
}
