//! Commands, shells and terminals, as a user of stock OpenSSH sees them.

mod support;

use std::process::Stdio;

use msb_test_support::{own_user, pattern};
use support::raw::{CHANNEL_SUCCESS, CLOSE, DATA, EOF, EXTENDED_DATA, Message, REQUEST, Raw};
use support::{Server, assert_success, is_root, os, output, output_with_input, stdout};

#[test]
fn output_errors_and_status_arrive_apart() {
    let output = Server::new().run("echo out; echo err >&2; exit 3");
    assert_eq!(stdout(&output), "out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_status_is_exact() {
    let server = Server::new();
    for status in [0, 1, 255] {
        assert_eq!(server.run(&format!("exit {status}")).status.code(), Some(status));
    }
}

#[test]
fn a_death_by_signal_is_no_success() {
    // The OpenSSH client has no better status for an exit-signal.
    assert_eq!(Server::new().run("kill -KILL $$").status.code(), Some(255));
}

#[test]
fn errors_still_flow_after_the_end_of_output() {
    let output = Server::new().run("exec >&-; sleep 0.1; echo late >&2");
    assert_eq!(output.stderr, b"late\n");
}

#[test]
fn all_output_arrives_before_the_status() {
    let server = Server::new();
    for _ in 0..5 {
        let output = server.run("seq 1 200000; exit 9");
        assert_eq!(stdout(&output).lines().last(), Some("200000"));
        assert_eq!(output.status.code(), Some(9));
    }
}

#[test]
fn the_end_of_input_ends_only_input() {
    let output = output_with_input(&mut Server::new().ssh(&["box", "cat; echo after; exit 4"]), b"before\n");
    assert_eq!(stdout(&output), "before\nafter\n");
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_background_process_that_holds_the_output_keeps_the_session() {
    let output = Server::new().run("(sleep 0.3; echo later) & echo now");
    assert_eq!(stdout(&output), "now\nlater\n");
}

#[test]
fn a_command_reaches_the_shell_byte_for_byte() {
    let server = Server::new();
    let mut ssh = server.ssh(&["box"]);
    let output = output(ssh.arg(os(b"printf %s '\xff\xfe $HOME'")).stdin(Stdio::null()));
    assert_eq!(output.stdout, b"\xff\xfe $HOME");
}

#[test]
fn a_login_sets_the_environment_of_sshd() {
    let output = Server::new().run("echo $USER:$LOGNAME:$SSH_CONNECTION:$SSH_CLIENT; pwd; echo ~; umask");
    let user = own_user();
    let home = std::env::home_dir().unwrap().display().to_string();
    let expected = format!("{user}:{user}:UNKNOWN 65535 UNKNOWN 65535:UNKNOWN 65535 65535\n{home}\n{home}\n0022\n");
    assert_eq!(stdout(&output), expected);
}

#[test]
fn a_client_sets_its_language_and_nothing_that_changes_programs() {
    let server = Server::new();
    let mut ssh = server.ssh(&["-o", "SetEnv LC_TEST=yes LD_LIBRARY_PATH=/evil MYVAR=no", "box"]);
    let output = output(
        ssh.arg("echo [$LC_TEST][$LD_LIBRARY_PATH][$MYVAR]")
            .stdin(Stdio::null()),
    );
    assert_eq!(stdout(&output), "[yes][][]\n");
}

#[test]
fn a_login_shell_knows_that_it_is_one() {
    let output = output_with_input(&mut Server::new().ssh(&["-T", "box"]), b"echo $0; exit 6\n");
    assert!(
        stdout(&output).lines().any(|line| line.starts_with('-')),
        "{}",
        stdout(&output)
    );
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn a_terminal_belongs_to_its_user_and_controls_its_session() {
    let server = Server::new();
    let script = "test -t 0 && test -t 2 && stat -c '%U %G %a' $(tty); echo $TERM; test $SSH_TTY = $(tty) && echo same; \
                  ps -o tpgid= -p $$ | grep -qv -- -1 && echo controlled; exit 5";
    let output = output(
        server
            .ssh(&["-tt", "box", script])
            .env("TERM", "vt220")
            .stdin(Stdio::null()),
    );
    let group = if is_root() { "tty" } else { "" };
    let lines = stdout(&output);
    assert!(lines.starts_with(&format!("{} {group}", own_user())), "{lines}");
    assert!(lines.ends_with("vt220\nsame\ncontrolled\n"), "{lines}");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn a_terminal_ends_with_its_leader_though_others_hold_it() {
    let server = Server::new();
    let script = "trap '' HUP; sleep 300 & echo $!; exit 0";
    let output = output(server.ssh(&["-tt", "box", script]).stdin(Stdio::null()));
    assert_success(&output);
    let pid: i32 = stdout(&output).trim().parse().unwrap();
    assert!(
        std::process::Command::new("kill")
            .arg(pid.to_string())
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_daemon_outlives_its_connection() {
    let output = Server::new().run("setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $!");
    let pid = stdout(&output).trim().to_owned();
    assert!(
        std::process::Command::new("kill").arg(&pid).status().unwrap().success(),
        "{pid} was gone"
    );
}

#[test]
fn an_unknown_subsystem_is_refused() {
    let output = output(Server::new().ssh(&["-s", "box", "shutdown@msb"]).stdin(Stdio::null()));
    assert_eq!(output.status.code(), Some(255));
}

#[test]
fn another_user_gets_its_own_identity() {
    if !is_root() {
        let output = output(Server::new().ssh(&["-l", "root", "box", "id"]).stdin(Stdio::null()));
        assert_eq!(output.status.code(), Some(255), "only root may become others");
        return;
    }
    let server = Server::new();
    // Accounts without a shell run what their account names: here a program that refuses.
    let output = output(server.ssh(&["-l", "daemon", "box", "id -u"]).stdin(Stdio::null()));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_stranger_is_refused() {
    let server = Server::new();
    server.generate_key("stranger");
    let stranger = std::fs::read_to_string(server.path("stranger.pub")).unwrap();
    server.write("authorized_keys", &stranger);
    let output = server.run("id");
    assert_eq!(output.status.code(), Some(255));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("(publickey)"),
        "only public keys may be offered as a method: {message}"
    );
}

#[test]
fn an_unknown_user_is_refused() {
    let output = output(
        Server::new()
            .ssh(&["-l", "no-such-user", "box", "id"])
            .stdin(Stdio::null()),
    );
    assert_eq!(output.status.code(), Some(255));
}

#[test]
fn a_key_with_a_command_runs_only_that() {
    let server = Server::with_options(r#"restrict,command="echo forced [$SSH_ORIGINAL_COMMAND]""#);
    assert_eq!(stdout(&server.run("rm -rf something")), "forced [rm -rf something]\n");
    let listing = server.sftp(b"ls /\n");
    assert!(!listing.status.success(), "sftp went past the command");
}

#[test]
fn a_key_without_a_terminal_gets_none() {
    let server = Server::with_options("no-pty");
    let output = output(server.ssh(&["-tt", "box", "tty"]).stdin(Stdio::null()));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("PTY allocation request failed"), "{message}");
    assert!(!stdout(&output).contains("/dev/"), "{}", stdout(&output));
}

#[test]
fn clients_may_insist_on_any_algorithm_of_theirs() {
    let server = Server::new();
    let mut insistences = vec![];
    for kex in [
        "curve25519-sha256",
        "diffie-hellman-group-exchange-sha256",
        "diffie-hellman-group14-sha256",
        "diffie-hellman-group16-sha512",
    ] {
        insistences.push(format!("KexAlgorithms={kex}"));
    }
    for cipher in [
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes128-ctr",
        "aes256-ctr",
    ] {
        insistences.push(format!("Ciphers={cipher}"));
    }
    insistences.push("Compression=yes".into());
    for insistence in insistences {
        let output = output(server.ssh(&["-o", &insistence, "box", "echo ok"]).stdin(Stdio::null()));
        assert_eq!(
            stdout(&output),
            "ok\n",
            "{insistence}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn rekeying_loses_nothing() {
    let server = Server::new();
    let mut ssh = server.ssh(&["-o", "RekeyLimit=1M", "box", "cat"]);
    let data = pattern(8 << 20);
    let output = output_with_input(&mut ssh, &data);
    assert!(
        output.stdout == data,
        "{} of {} bytes came back",
        output.stdout.len(),
        data.len()
    );
}

#[test]
fn a_server_without_sftp_transfers_no_files_and_runs_commands() {
    let server = Server::with_arguments("--no-sftp");
    assert!(!server.sftp(b"ls /\n").status.success());
    assert_eq!(stdout(&server.run("echo still")), "still\n");
}

/// All messages of a session that runs `command`, until its channel is closed.
fn messages_of(raw: &mut Raw, command: &str) -> Vec<Vec<u8>> {
    let id = raw.open_session(1);
    raw.send(&Message::request(id, "exec").string(command));
    raw.expect(CHANNEL_SUCCESS);
    let mut messages = Vec::new();
    loop {
        let message = raw.receive().unwrap();
        let last = message[0] == CLOSE;
        messages.push(message);
        if last {
            raw.send(&Message::new(CLOSE).u32(id));
            return messages;
        }
    }
}

#[test]
fn a_result_comes_after_all_output_and_before_the_end() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let messages = messages_of(&mut raw, "seq 1 20000; echo err >&2; exit 7");
    let [output @ .., result, end, close] = messages.as_slice() else {
        panic!("{} messages", messages.len());
    };
    assert!(output.iter().all(|message| [DATA, EXTENDED_DATA].contains(&message[0])));
    let status = Message::new(REQUEST).u32(1).string("exit-status").byte(0).u32(7);
    assert_eq!((result, end[0], close[0]), (&status.0, EOF, CLOSE));
}

#[test]
fn a_death_by_signal_is_told_by_its_name() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    for signal in [
        "HUP", "INT", "ABRT", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "USR2",
    ] {
        let messages = messages_of(&mut raw, &format!("ulimit -c 0; kill -{signal} $$"));
        let told = Message::new(REQUEST)
            .u32(1)
            .string("exit-signal")
            .byte(0)
            .string(signal);
        let told = told.byte(0).string("").string("");
        assert_eq!(messages[0], told.0, "{signal}");
    }
}
