//! Terminals: the modes and the size of the client's own terminal arrive in the box.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::pty::OpenptFlags;
use rustix::termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Winsize};
use support::Server;

/// A terminal with ssh in it.
struct Screen {
    master: OwnedFd,
    lines: BufReader<File>,
    ssh: Child,
}

impl Screen {
    /// Starts ssh in a terminal of odd settings.
    fn start(server: &Server, command: &str) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let mut settings = rustix::termios::tcgetattr(&slave).unwrap();
        settings.special_codes[SpecialCodeIndex::VERASE] = 8;
        settings.special_codes[SpecialCodeIndex::VINTR] = 0;
        settings.input_modes.remove(InputModes::IXON);
        settings.input_modes.insert(InputModes::IUTF8);
        settings.local_modes.remove(LocalModes::ECHO);
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &settings).unwrap();
        resize(&master, 33, 111);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut ssh = Command::new("setsid");
        ssh.args(["--ctty", "--wait", "timeout", "--foreground", "60", "ssh", "-F"])
            .arg(server.path("config"));
        let ssh = ssh
            .args(["-t", "box", command])
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let lines = BufReader::new(File::from(master.try_clone().unwrap()));
        Self { master, lines, ssh }
    }

    /// The next line that contains `text`.
    fn expect(&mut self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).unwrap_or(0);
            assert!(read > 0, "{text:?} never came after:\n{seen}");
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

fn resize(master: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 640,
        ws_ypixel: 480,
    };
    rustix::termios::tcsetwinsize(master, size).unwrap();
}

#[test]
fn modes_characters_and_size_arrive() {
    let server = Server::new();
    let mut screen = Screen::start(&server, "stty -a | tr '\\n' ' '; echo; echo done");
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
    let mut screen = Screen::start(&server, script);
    screen.expect("ready");
    resize(&screen.master, 51, 137);
    screen.expect("51 137");
    assert!(screen.ssh.wait().unwrap().success());
}
