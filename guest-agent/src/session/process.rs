//! Starts the processes of a session, as the login user.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::terminal::Terminal;
use crate::shell;
use crate::syscall::check;
use crate::users::User;

/// Permissions that new files do not get, as in sshd.
const UMASK: libc::mode_t = 0o022;

/// What a session runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Program {
    /// The user's shell, as a login shell.
    Shell,
    /// A command for the user's shell, byte for byte as the client sent it.
    Command(Vec<u8>),
    /// The SFTP server, which is this binary.
    Sftp,
    /// The process server, which is this binary, with these arguments.
    Processes(Vec<OsString>),
    /// The server that tells what changes in a directory, which is this binary.
    Watch,
    /// The server that takes what was written as a layer, which is this binary.
    Layer,
    /// The server that waits until something is ready, which is this binary.
    Ready,
}

/// What a program finds when it starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) environment: &'a BTreeMap<OsString, OsString>,
    pub(super) directory: &'a Path,
}

/// Starts `program` as `user`, on `terminal` or else on pipes.
///
/// # Errors
/// When the program does not exist or the process cannot become the user.
pub(super) fn spawn(
    program: &Program,
    user: &User,
    place: Place<'_>,
    terminal: Option<&Terminal>,
) -> io::Result<Child> {
    let mut command = command_line(program, user);
    command.env_clear().envs(place.environment);
    match terminal {
        Some(terminal) => {
            let slave = || terminal.slave().try_clone().map(Stdio::from);
            command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
        }
        None => {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        }
    }
    let entry = Entry::new(user, place.directory, terminal.is_some());
    // SAFETY: Entry::enter only makes system calls on memory that was allocated before the fork.
    unsafe { command.pre_exec(move || entry.enter()) };
    Command::from(command).spawn()
}

fn command_line(program: &Program, user: &User) -> std::process::Command {
    match program {
        Program::Shell => shell::login(&user.shell),
        Program::Command(line) => shell::line(&user.shell, line),
        Program::Sftp => shell::own_program(["sftp-server"]),
        Program::Processes(arguments) => shell::own_program(arguments),
        Program::Watch => shell::own_program(["watch-server"]),
        Program::Layer => shell::own_program(["layer-server"]),
        Program::Ready => shell::own_program(["ready-server"]),
    }
}

/// What a new process does to itself between fork and exec.
struct Entry {
    /// Nothing to become when this is not root: only the own user may log in then.
    identity: Option<Identity>,
    directory: CString,
    /// What a login without its directory is told, up to the reason.
    complaint: Vec<u8>,
    terminal: bool,
}

struct Identity {
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl Entry {
    fn new(user: &User, directory: &Path, terminal: bool) -> Self {
        let identity = Identity {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
        };
        Self {
            identity: rustix::process::geteuid().is_root().then_some(identity),
            directory: CString::new(directory.as_os_str().as_bytes()).unwrap_or_default(),
            complaint: match directory == user.home {
                true => format!("Could not chdir to home directory {}: ", directory.display()),
                false => format!("Could not chdir to working directory {}: ", directory.display()),
            }
            .into_bytes(),
            terminal,
        }
    }

    /// Runs in the child: nothing here allocates or locks.
    fn enter(&self) -> io::Result<()> {
        // SAFETY: a plain system call.
        check(unsafe { libc::setsid() })?;
        if self.terminal {
            // SAFETY: descriptor 0 is the terminal.
            check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
        }
        // SAFETY: a plain system call, which cannot fail.
        unsafe { libc::umask(UMASK) };
        if let Some(identity) = &self.identity {
            identity.assume()?;
        }
        // SAFETY: the path ends with NUL.
        if unsafe { libc::chdir(self.directory.as_ptr()) } != 0 {
            self.complain(io::Error::last_os_error().raw_os_error());
            // SAFETY: as above.
            check(unsafe { libc::chdir(c"/".as_ptr()) })?;
        }
        Ok(())
    }
}

impl Entry {
    /// Says on standard error that there is no home directory, as sshd does. What cannot be written is not missed.
    fn complain(&self, error: Option<i32>) {
        let reason: &[u8] = match error {
            Some(libc::ENOENT) => b"No such file or directory\n",
            Some(libc::EACCES) => b"Permission denied\n",
            Some(libc::ENOTDIR) => b"Not a directory\n",
            _ => b"unusable\n",
        };
        let stderr = rustix::stdio::stderr();
        let _ = rustix::io::write(stderr, &self.complaint).and_then(|_| rustix::io::write(stderr, reason));
    }
}

impl Identity {
    fn assume(&self) -> io::Result<()> {
        // SAFETY: the pointer and length are those of one vector.
        check(unsafe { libc::setgroups(self.groups.len(), self.groups.as_ptr()) })?;
        // SAFETY: a plain system call.
        check(unsafe { libc::setgid(self.gid) })?;
        // SAFETY: a plain system call; it is last because it gives up the right to the others.
        check(unsafe { libc::setuid(self.uid) })
    }
}
