//! A command on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// No expected output takes this long to come.
const LIMIT: Duration = Duration::from_secs(60);

/// A child whose controlling terminal is a pseudo-terminal that the test holds.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    master: File,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Starts `command` on a terminal of 80 columns and `rows` rows.
    ///
    /// # Panics
    /// When the host refuses.
    pub fn start(command: &mut Command, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pty");
        grantpt(&master).expect("the pty is ours");
        unlockpt(&master).expect("the pty is ours");
        let name = ptsname(&master, Vec::new()).expect("a pty has a name");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("/dev/pts is ASCII"))
            .expect("the other end of the pty");
        tcsetwinsize(&master, winsize(rows)).expect("a pty has a size");
        command
            .stdin(slave.try_clone().expect("a descriptor"))
            .stdout(slave.try_clone().expect("a descriptor"))
            .stderr(slave);
        // SAFETY: both calls are async-signal-safe, as between fork and exec they must be.
        unsafe { command.pre_exec(take_terminal) };
        let child = command.spawn().expect("the command starts");
        // The command keeps its copies of the terminal otherwise, and its end is never seen.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let master = File::from(master);
        let mut reader = master.try_clone().expect("a descriptor");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            master,
            output,
            seen: String::new(),
        }
    }

    /// Types `text`.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_text(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("the terminal takes input");
    }

    /// Changes the number of rows.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16) {
        tcsetwinsize(&self.master, winsize(rows)).expect("a pty has a size");
    }

    /// Waits until `text` is written after what was seen before; returns what came up to its end.
    ///
    /// # Panics
    /// When the output ends before.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_within(text, LIMIT)
            .unwrap_or_else(|| panic!("no {text:?} in {:?}", self.seen))
    }

    /// As [`Self::wait_for`], but `None` when `text` is not there within `limit`.
    pub fn wait_for_within(&mut self, text: &str, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(start) = self.seen.find(text) {
                let rest = self.seen.split_off(start + text.len());
                return Some(std::mem::replace(&mut self.seen, rest));
            }
            match self
                .output
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Waits for the end of the command; returns its exit status.
    ///
    /// # Panics
    /// When it died by a signal.
    pub fn wait(mut self) -> i32 {
        self.child
            .wait()
            .expect("a child can be waited for")
            .code()
            .expect("it exits by itself")
    }
}

fn winsize(rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn take_terminal() -> std::io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    Ok(())
}
