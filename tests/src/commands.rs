//! Running commands to their end.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What makes ssh the master of a shared connection that says "up" once it is; a path and the host follow.
pub const MASTER: [&str; 6] = [
    "-NM",
    "-o",
    "PermitLocalCommand=yes",
    "-o",
    "LocalCommand=echo up",
    "-S",
];

/// No command of a test takes this long: one that does hangs.
const LIMIT: Duration = Duration::from_secs(900);

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit status; `None` after a death by signal.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, as text.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself, if the exit status is `code`.
    ///
    /// # Panics
    /// With everything the command said, otherwise.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        let shown: String = self.text().chars().take(2000).collect();
        assert_eq!(self.code, Some(code), "stdout: {shown}\nstderr: {}", self.stderr);
        self
    }

    /// The one line of standard error of a refusal: not success, nothing on standard output.
    ///
    /// # Panics
    /// When it is something else.
    #[track_caller]
    pub fn refusal(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "{self:?}");
        assert_eq!(self.text(), "", "a refusal has no output");
        assert_eq!(
            self.stderr.trim_end().lines().count(),
            1,
            "a refusal is one line: {}",
            self.stderr
        );
        self.stderr.trim_end().to_owned()
    }
}

/// Runs `command` without input.
///
/// # Panics
/// When it cannot be started or does not end.
pub fn finish(command: &mut Command) -> Finished {
    finish_with_input(command, Vec::new())
}

/// Runs `command` with `input`, then end of file, as standard input.
///
/// # Panics
/// When it cannot be started or does not end.
pub fn finish_with_input(command: &mut Command, input: Vec<u8>) -> Finished {
    let began = Instant::now();
    let described = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What it leaves in the background holds its output open, and is killed with it.
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {described}: {error}"));
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let writer = std::thread::spawn(move || {
        // A command need not read its input.
        let _ = stdin.write_all(&input);
    });
    let pid = rustix::process::Pid::from_child(&child);
    let (done, watched) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let hangs = watched.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if hangs {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        hangs
    });
    let output = child.wait_with_output().expect("a child can be waited for");
    let _ = done.send(());
    let hung = watchdog.join().expect("the watchdog does not panic");
    writer.join().expect("the writer does not panic");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!hung, "{described} did not end in {LIMIT:?}: {stderr}");
    Finished {
        code: output.status.code(),
        stdout: output.stdout,
        stderr,
        took: began.elapsed(),
    }
}

/// The digest of `bytes`, by coreutils.
///
/// # Panics
/// When there is no `sha256sum`.
pub fn sha256(bytes: Vec<u8>) -> String {
    first_word(
        &finish_with_input(&mut Command::new("sha256sum"), bytes)
            .expect(0)
            .text(),
    )
}

/// The digest of a file, by coreutils.
///
/// # Panics
/// When the file cannot be read.
pub fn sha256_of_file(path: &Path) -> String {
    first_word(&finish(Command::new("sha256sum").arg(path)).expect(0).text())
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}
