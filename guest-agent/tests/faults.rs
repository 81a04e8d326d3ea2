//! What is no SSH, and peers that vanish.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use msb_test_support::pattern;
use support::{AGENT, Server, output, output_with_input, serve, stdout};

#[test]
fn bytes_that_are_no_ssh_end_the_connection() {
    let server = Server::new();
    let noise = pattern(1 << 20);
    let banner_then_noise = [b"SSH-2.0-x\r\n", noise.as_slice()].concat();
    let huge_packet = [b"SSH-2.0-x\r\n".as_slice(), &[0xff; 64]].concat();
    for input in [noise, banner_then_noise, huge_packet] {
        let output = output_with_input(&mut serve(&server), &input);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.stderr.starts_with(b"msb-agent: "),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn a_client_that_leaves_before_it_speaks_is_no_error() {
    for input in [&b""[..], b"SSH-2.0-x\r\n"] {
        let output = output_with_input(&mut serve(&Server::new()), input);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn a_missing_file_and_a_bad_key_are_named() {
    let server = Server::new();
    server.write("damaged", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n");
    for (key, expected) in [("missing", "missing"), ("damaged", "host key")] {
        let mut command = Command::new(AGENT);
        command.args(["serve", "--stdio", "--host-key"]).arg(server.path(key));
        let output = output(
            command
                .arg("--authorized-keys")
                .arg(server.path("authorized_keys"))
                .stdin(Stdio::null()),
        );
        assert_eq!(output.status.code(), Some(1));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected) && message.lines().count() == 1, "{message}");
    }
}

#[test]
fn a_client_that_is_killed_hangs_up_its_terminal() {
    let server = Server::new();
    let (ready, gone) = (server.path("ready"), server.path("gone"));
    for fifo in [&ready, &gone] {
        assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
    }
    let script = format!(
        "trap 'echo hung up > {gone}; exit' HUP; echo ready > {ready}; while :; do sleep 0.05; done",
        gone = gone.display(),
        ready = ready.display()
    );
    // Without timeout(1) in front, so that the kill hits ssh itself.
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(server.path("config")).args(["-tt", "box", &script]);
    let mut client = ssh.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(fs::read_to_string(&ready).unwrap(), "ready\n");
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(fs::read_to_string(&gone).unwrap(), "hung up\n");
}

#[test]
fn a_client_that_is_killed_ends_the_input_of_its_command() {
    let server = Server::new();
    let ended = server.path("ended");
    assert!(Command::new("mkfifo").arg(&ended).status().unwrap().success());
    let script = format!("echo started; cat > /dev/null; echo ended > {}", ended.display());
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(server.path("config")).args(["box", &script]);
    let mut client = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut started = [0; 8];
    client.stdout.as_mut().unwrap().read_exact(&mut started).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(fs::read_to_string(&ended).unwrap(), "ended\n");
}

#[test]
fn sftp_packets_that_lie_end_in_a_status_or_an_error() {
    let lies: [&[u8]; 4] = [
        // A length beyond the limit, and none at all.
        &[0xff, 0xff, 0xff, 0xff, 3],
        &[0, 0, 0, 0],
        // A path longer than its packet.
        &[0, 0, 0, 9, 7, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff],
        // A packet that never comes.
        &[0, 0, 1, 0, 7],
    ];
    for lie in lies {
        let mut child = Command::new("timeout")
            .args(["60", AGENT, "sftp-server"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lie).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{lie:?}: {}",
            output.status
        );
        assert!(
            !String::from_utf8_lossy(&output.stderr).contains("panicked"),
            "{}",
            stdout(&output)
        );
    }
}
