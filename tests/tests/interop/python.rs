//! The SSH libraries of Python, each with a script beside this file.

use msb_tests::{finish, sha256_of_file};

use crate::fixture::Fixture;

/// What a get asks for at once exceeds every window and queue on the way.
const SIZE: usize = 8 << 20;

pub(crate) fn paramiko(fixture: &Fixture) {
    run(fixture, "paramiko", include_str!("paramiko_client.py"));
}

pub(crate) fn asyncssh(fixture: &Fixture) {
    run(fixture, "asyncssh", include_str!("asyncssh_client.py"));
}

/// Runs a script that puts a file and gets it back, and prints what it saw.
fn run(fixture: &Fixture, library: &str, script: &str) {
    let file = fixture.random_file(&format!("{library}-file"), SIZE);
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
