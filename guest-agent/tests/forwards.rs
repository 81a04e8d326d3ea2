//! Connections that the client makes through the box.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

use msb_test_support::{own_user, pattern};
use support::{Server, assert_success, is_root, output, output_with_input, stdout};

/// Answers one connection with a greeting, then with all that it got once that has ended.
fn echo_after_end() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello ").unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        stream.write_all(&received).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    });
    port
}

#[test]
fn each_direction_ends_by_itself() {
    let port = echo_after_end();
    let data = pattern(3 << 20);
    let target = format!("127.0.0.1:{port}");
    let output = output_with_input(&mut Server::new().ssh(&["-W", &target, "box"]), &data);
    assert_success(&output);
    assert!(
        output.stdout == [b"hello ", data.as_slice()].concat(),
        "{} bytes",
        output.stdout.len()
    );
}

#[test]
fn a_refused_connection_fails() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let target = format!("127.0.0.1:{closed}");
    let output = output(
        Server::new()
            .ssh(&["-o", "LogLevel=INFO", "-W", &target, "box"])
            .stdin(Stdio::null()),
    );
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("connect failed"));
}

#[test]
fn a_key_without_forwarding_connects_nowhere() {
    let port = echo_after_end();
    let target = format!("127.0.0.1:{port}");
    let server = Server::with_options("no-port-forwarding");
    let refused = output(
        server
            .ssh(&["-o", "LogLevel=INFO", "-W", &target, "box"])
            .stdin(Stdio::null()),
    );
    assert_eq!(refused.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("administratively prohibited"));
    assert_eq!(stdout(&server.run("echo still")), "still\n");
}

#[test]
fn a_unix_socket_is_reached_with_the_rights_of_the_user() {
    let server = Server::new();
    let (here, there) = (server.path("here"), server.path("there"));
    let listener = std::os::unix::net::UnixListener::bind(&there).unwrap();
    let answering = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        stream.write_all(&received).unwrap();
    });
    let rule = format!("{}:{}", here.display(), there.display());
    let mut ssh = server.ssh(&["-L", &rule, "box", "echo ready; cat"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    ssh.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();

    let mut stream = std::os::unix::net::UnixStream::connect(&here).unwrap();
    stream.write_all(b"through").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).unwrap();
    assert_eq!(echoed, "through");
    answering.join().unwrap();
    drop(ssh.stdin.take());
    assert!(ssh.wait().unwrap().success());
}

#[test]
fn a_connection_is_the_users_and_not_the_servers() {
    // Only root's server serves others.
    let user = if is_root() { "daemon".into() } else { own_user() };
    let uid = stdout(&output(Command::new("id").args(["-u", &user])));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let server = Server::new();
    let mut ssh = server.ssh(&["-l", &user, "-W", &target, "box"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let (stream, peer) = listener.accept().unwrap();
    let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{:04X}", peer.port());
    let line = connections
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some(&local));
    let owner = line.and_then(|line| line.split_whitespace().nth(7)).unwrap();
    assert_eq!(owner, uid.trim());
    drop((stream, ssh.stdin.take()));
    assert!(ssh.wait().unwrap().success());
}
