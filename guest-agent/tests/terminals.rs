//! Terminals: the modes and the size of the client's own terminal arrive in the box.

mod support;

use std::process::Stdio;

use support::raw::{CHANNEL_FAILURE, CHANNEL_SUCCESS, CLOSE, DATA, Message, Raw};
use support::screen::Screen;
use support::{Server, output, stdout};

/// Settings of a client's terminal that no new terminal has.
const ODD: &str = "erase ^H intr undef -ixon iutf8 -echo";

#[test]
fn modes_characters_and_size_arrive() {
    let server = Server::new();
    let mut screen = Screen::start(&server, ODD, "stty -a | tr '\\n' ' '; echo; echo done");
    let settings = screen.expect("speed");
    for expected in [
        "rows 33",
        "columns 111",
        "erase = ^H",
        "intr = <undef>",
        " -ixon",
        " iutf8",
        " -echo ",
        " icanon",
    ] {
        assert!(settings.contains(expected), "{expected} not in {settings}");
    }
    screen.expect("done");
    assert!(screen.ssh.wait().unwrap().success());
}

#[test]
fn a_new_size_reaches_the_program() {
    let server = Server::new();
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut screen = Screen::start(&server, ODD, script);
    screen.expect("ready");
    screen.resize(51, 137);
    screen.expect("51 137");
    assert!(screen.ssh.wait().unwrap().success());
}

/// Opens a session with a terminal and returns the server's name for it.
fn open_terminal(raw: &mut Raw, client_id: u32) -> u32 {
    let id = raw.open_session(client_id);
    let request = Message::request(id, "pty-req").string("vt100");
    raw.send(&request.u32(80).u32(24).u32(640).u32(480).string([0]));
    raw.expect(CHANNEL_SUCCESS);
    id
}

#[test]
fn two_hundred_sessions_leave_no_terminal() {
    // bash reads no start files, which may take long, when it is not the first shell.
    let server = Server::with_options(r#"environment="SHLVL=2""#);
    let mut raw = Raw::log_in(&server);
    for round in 0..200 {
        let id = open_terminal(&mut raw, round);
        raw.send(&Message::request(id, "exec").string("true"));
        raw.expect(CLOSE);
        raw.send(&Message::new(CLOSE).u32(id));
    }
    let id = raw.open_session(200);
    raw.send(&Message::request(id, "exec").string("ls -l /proc/$PPID/fd | grep -c -e ptmx -e pts"));
    assert!(raw.expect(DATA).ends_with(b"0\n"));
}

#[test]
fn a_terminal_that_was_never_used_is_given_back_with_its_channel() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    for round in 0..50 {
        let id = open_terminal(&mut raw, round);
        raw.send(&Message::new(CLOSE).u32(id));
        raw.expect(CLOSE);
    }
    let id = raw.open_session(50);
    raw.send(&Message::request(id, "exec").string("ls -l /proc/$PPID/fd | grep -c -e ptmx -e pts"));
    assert!(raw.expect(DATA).ends_with(b"0\n"));
}

#[test]
fn a_signal_reaches_the_foreground_of_the_terminal_and_not_its_shell() {
    let server = Server::new();
    let mut raw = Raw::log_in(&server);
    let id = open_terminal(&mut raw, 1);
    // Job control gives the inner command a process group of its own.
    let script = "set -m; trap 'echo wrong' TERM; sh -c \"trap 'echo right; exit' TERM; echo ready; while :; do sleep 0.05; done\"";
    raw.send(&Message::request(id, "exec").string(script));
    let mut seen = String::new();
    let mut signalled = false;
    while !seen.contains("right") {
        seen.push_str(&String::from_utf8_lossy(&raw.expect(DATA)[9..]));
        assert!(!seen.contains("wrong"), "{seen}");
        if seen.contains("ready") && !signalled {
            raw.send(&Message::request(id, "signal").string("TERM"));
            signalled = true;
        }
    }
}

#[test]
fn a_command_that_a_key_forces_is_not_signalled() {
    let server = Server::with_options(r#"command="echo ready; exec cat""#);
    let mut raw = Raw::log_in(&server);
    let id = raw.open_session(1);
    raw.send(&Message::request(id, "shell"));
    raw.expect(DATA);
    raw.send(&Message::request(id, "signal").string("KILL"));
    raw.expect(CHANNEL_FAILURE);
    assert!(raw.is_alive());
}

#[test]
fn a_daemon_survives_the_terminal_it_was_started_on() {
    let server = Server::new();
    let fifo = server.path("started");
    assert!(output(std::process::Command::new("mkfifo").arg(&fifo)).status.success());
    // The terminal ends only after the daemon has left its session.
    let daemon = format!(
        "echo $$ > {}; exec sleep 300 </dev/null >/dev/null 2>&1",
        fifo.display()
    );
    let script = format!("setsid sh -c '{daemon}' & cat {}", fifo.display());
    let seen = output(server.ssh(&["-tt", "box", &script]).stdin(Stdio::null()));
    let pid = stdout(&seen).trim().to_owned();
    let killed = output(std::process::Command::new("kill").arg(&pid));
    assert!(killed.status.success(), "{pid:?} was gone");
}
