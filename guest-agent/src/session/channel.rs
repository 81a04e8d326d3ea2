//! A session channel: what the client asked for before it starts a process, and the process afterwards.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::process::{Pid, Signal};
use tokio::sync::Notify;

use super::Settings;
use super::conversation::Conversation;
use super::environment::{self, Circumstances, ClientVariables};
use super::input::Input;
use super::outlet::Outlet;
use super::process::{self, Place, Program};
use super::terminal::Terminal;
use crate::authorized_keys::Options;
use crate::net::FdStream;
use crate::pty::{self, Size};
use crate::users::User;

/// Shown where an interactive shell starts, unless the user's home holds [`NO_MOTD`].
const MOTD: &str = "/etc/motd";
const NO_MOTD: &str = ".hushlogin";
const MAX_MOTD: u64 = 16 << 10;

/// Who logged in.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) user: User,
    pub(super) options: Options,
}

/// One open session channel.
#[derive(Debug)]
pub(super) struct SessionChannel {
    outlet: Arc<Outlet>,
    input: Arc<Input>,
    closed: Arc<Notify>,
    variables: ClientVariables,
    terminal: Option<Terminal>,
    process: Option<Process>,
}

/// What a started process can be told.
#[derive(Debug)]
struct Process {
    leader: Option<Pid>,
    terminal: Option<FdStream>,
    /// Whether the client chose it, and so may send it signals.
    chosen: bool,
}

impl SessionChannel {
    pub(super) fn new(outlet: Outlet, input: Arc<Input>) -> Self {
        Self {
            outlet: Arc::new(outlet),
            input,
            closed: Arc::new(Notify::new()),
            variables: ClientVariables::default(),
            terminal: None,
            process: None,
        }
    }

    pub(super) fn input(&self) -> &Arc<Input> {
        &self.input
    }

    pub(super) fn outlet(&self) -> Arc<Outlet> {
        Arc::clone(&self.outlet)
    }

    /// Takes an environment variable, if it is one that clients may set.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) -> bool {
        self.process.is_none() && self.variables.set(name, value)
    }

    /// Gives the channel its terminal.
    pub(super) fn set_terminal(&mut self, terminal: Terminal) {
        self.terminal = Some(terminal);
    }

    /// Whether a process may still be started and a terminal be had.
    pub(super) fn is_unstarted(&self) -> bool {
        self.process.is_none()
    }

    /// Whether the channel has a terminal already.
    pub(super) fn has_terminal(&self) -> bool {
        self.terminal.is_some() || self.process.as_ref().is_some_and(|process| process.terminal.is_some())
    }

    /// Starts what the client asked for, or what its key says instead.
    ///
    /// # Errors
    /// When it cannot be started; the channel is then as before.
    pub(super) fn start(
        &mut self,
        program: Program,
        login: &Login,
        settings: &Settings,
        agent: Option<&Path>,
    ) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let (program, original) = forced(program, &login.options);
        if program == Program::Sftp && !settings.features.sftp {
            return Err(io::Error::other("SFTP is switched off for this sandbox"));
        }
        let circumstances = Circumstances {
            client: Some(&self.variables),
            key: &login.options.environment,
            terminal: self.terminal.as_ref().map(Terminal::names),
            agent,
            original_command: original.as_deref().map(OsStr::from_bytes),
        };
        let environment = environment::build(settings, &login.user, circumstances);
        let directory = match program {
            Program::Sftp | Program::Watch => login.user.home.clone(),
            Program::Layer => "/".into(),
            Program::Shell | Program::Command(_) | Program::Processes(_) | Program::Ready => {
                settings.working_dir(&login.user)
            }
        };
        let place = Place {
            environment: &environment,
            directory: &directory,
        };
        let mut child = process::spawn(&program, &login.user, place, self.terminal.as_ref())?;
        // The other end stays open in the process only, so that its end is seen.
        let master = self.terminal.take().map(|terminal| terminal.master().clone());
        self.process = Some(Process {
            leader: child.id().and_then(|id| Pid::from_raw(id.cast_signed())),
            terminal: master.clone(),
            chosen: login.options.command.is_none() && matches!(program, Program::Shell | Program::Command(_)),
        });
        let greeting = master
            .as_ref()
            .filter(|_| program == Program::Shell)
            .and_then(|_| motd(&login.user));
        let conversation = Conversation {
            stdin: child.stdin.take(),
            child,
            terminal: master,
            outlet: self.outlet(),
            input: Arc::clone(&self.input),
            closed: Arc::clone(&self.closed),
            greeting,
        };
        Ok(conversation.run())
    }

    /// The client's window has a new size.
    ///
    /// # Errors
    /// When the channel has no terminal.
    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        let running = self.process.as_ref().and_then(|process| process.terminal.as_ref());
        match running.or_else(|| self.terminal.as_ref().map(Terminal::master)) {
            Some(master) => pty::resize(master.input(), size),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Sends a signal to the foreground processes of the terminal, or to the processes of the session. As under sshd, not
    /// to subsystems and forced commands.
    ///
    /// # Errors
    /// When there is no such process, or the signal does not exist.
    pub(super) fn signal(&self, number: libc::c_int) -> io::Result<()> {
        let process = self.process.as_ref().filter(|process| process.chosen);
        let process = process.ok_or(io::ErrorKind::NotFound)?;
        let foreground = process
            .terminal
            .as_ref()
            .and_then(|tty| rustix::termios::tcgetpgrp(tty.input()).ok());
        let group = foreground.or(process.leader).ok_or(io::ErrorKind::NotFound)?;
        let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(rustix::process::kill_process_group(group, signal)?)
    }
}

impl Drop for SessionChannel {
    fn drop(&mut self) {
        self.input.end();
        self.closed.notify_one();
    }
}

/// A key's `command` replaces whatever the client asked for, which the command can read from its environment.
fn forced(program: Program, options: &Options) -> (Program, Option<Vec<u8>>) {
    let Some(command) = &options.command else {
        return (program, None);
    };
    let original = match program {
        Program::Shell => None,
        Program::Command(line) => Some(line),
        Program::Sftp => Some(b"internal-sftp".to_vec()),
        Program::Processes(_) => Some(msb_protocol::process::SUBSYSTEM.into()),
        Program::Watch => Some(msb_protocol::watch::SUBSYSTEM.into()),
        Program::Layer => Some(msb_protocol::layer::SUBSYSTEM.into()),
        Program::Ready => Some(msb_protocol::ready::SUBSYSTEM.into()),
    };
    if command == "internal-sftp" {
        return (Program::Sftp, original);
    }
    (Program::Command(command.clone().into_bytes()), original)
}

fn motd(user: &User) -> Option<Bytes> {
    if user.home.join(NO_MOTD).exists() {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::open(MOTD)
        .ok()?
        .take(MAX_MOTD)
        .read_to_end(&mut text)
        .ok()?;
    let lines = text.split_inclusive(|&byte| byte == b'\n');
    let ended = |line: &[u8]| match line.split_last() {
        Some((b'\n', line)) => [line, b"\r\n"].concat(),
        _ => line.to_vec(),
    };
    let text: Vec<u8> = lines.flat_map(ended).collect();
    (!text.is_empty()).then(|| text.into())
}
