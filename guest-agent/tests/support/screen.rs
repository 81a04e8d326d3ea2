//! A terminal on the client's side.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::{Server, assert_success, output};

/// A terminal with ssh in it.
pub(crate) struct Screen {
    master: OwnedFd,
    lines: BufReader<File>,
    pub(crate) ssh: Child,
}

impl Screen {
    /// Starts ssh in a terminal with these settings of stty(1), 33 rows and 111 columns.
    pub(crate) fn start(server: &Server, settings: &str, command: &str) -> Self {
        Self::start_with(server, "config", settings, command)
    }

    /// As [`Screen::start`], with this file as the client's configuration.
    pub(crate) fn start_with(server: &Server, config: &str, settings: &str, command: &str) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut stty = Command::new("stty");
        assert_success(&output(stty.args(settings.split(' ')).stdin(stdio())));
        resize(&master, 33, 111);
        let mut ssh = Command::new("setsid");
        ssh.args(["--ctty", "--wait", "timeout", "--foreground", "60", "ssh", "-F"])
            .arg(server.path(config));
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
    pub(crate) fn expect(&mut self, text: &str) -> String {
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

    /// All that is shown until the end.
    pub(crate) fn rest(&mut self) -> String {
        let mut shown = Vec::new();
        // A terminal that nobody has open any more reads as an error.
        let _ = self.lines.read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Gives the window a new size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        resize(&self.master, rows, columns);
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
