//! ssh-audit.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use msb_tests::finish;

use crate::fixture::Fixture;

pub(crate) fn algorithms(fixture: &Fixture) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut shell = fixture.server.command("sh");
    shell.args(["-c", &format!("exec {}", fixture.server.bridge)]);
    // It ends with the process: ssh-audit connects as often as it likes.
    std::thread::spawn(move || relay(&listener, shell));
    let mut audit = fixture.client("ssh-audit", "ssh-audit");
    let done = finish(audit.args(["--no-colors", "--batch", "-p", &port, "127.0.0.1"]));
    let report = done.text();
    assert!(
        report.contains("(kex) curve25519-sha256 ") && report.contains("(key) ssh-ed25519 "),
        "it read what we offer: {report}{}",
        done.stderr
    );
    assert!(!report.contains("[fail]"), "{report}");
}

/// Gives every connection a bridge of its own.
fn relay(listener: &TcpListener, mut bridge: Command) {
    let mut children = Vec::new();
    for stream in listener.incoming().flatten() {
        let stream = OwnedFd::from(stream);
        let Ok(output) = stream.try_clone() else { return };
        let child = bridge.stdin(stream).stdout(output).stderr(Stdio::null()).spawn();
        // Its copies of the connection would keep it open.
        bridge.stdin(Stdio::null()).stdout(Stdio::null());
        children.extend(child);
    }
}
