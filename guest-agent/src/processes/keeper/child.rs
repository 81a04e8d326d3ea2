//! Starts the process that a keeper keeps.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use msb_protocol::process::{Program, Start, Terminal};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::termios::InputModes;

use crate::pty::{PtyPair, Size};
use crate::{shell, signal_fd};

/// Why a process cannot be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("cannot enter {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot open a terminal")]
    Terminal(#[source] io::Error),
    #[error("{0:?} is no name of a variable")]
    Variable(OsString),
    #[error("there is no program to run")]
    Nothing,
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("cannot watch the process")]
    Watch(#[source] io::Error),
}

/// A process that was started, and this end of its streams.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    /// Readable once it ended.
    pub(super) ended: OwnedFd,
    /// Where its input is written.
    pub(super) input: Option<OwnedFd>,
    /// Standard output and standard error, or the terminal.
    pub(super) outputs: Vec<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    /// Where it was started.
    pub(super) cwd: PathBuf,
}

/// Starts a process as the user that runs this, in a session of its own. It does not outlive this process.
///
/// # Errors
/// When the directory, the program or a terminal is not there.
pub(super) fn start(start: &Start) -> Result<Started, StartError> {
    let cwd = enter(start.cwd.as_deref())?;
    let mut command = command(&start.program)?;
    set_environment(&mut command, &start.env)?;
    let terminal = match &start.terminal {
        Some(terminal) => Some(put_on_terminal(&mut command, terminal).map_err(StartError::Terminal)?),
        None => {
            let input = if start.input { Stdio::piped() } else { Stdio::null() };
            command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    let has_terminal = terminal.is_some();
    // SAFETY: only system calls, on no memory.
    unsafe { command.pre_exec(move || become_leader(has_terminal)) };
    let mut child = command.spawn().map_err(|source| StartError::Run {
        program: command.get_program().into(),
        source,
    })?;
    // The directory is the process's to hold, not its keeper's.
    let _ = rustix::process::chdir("/");
    let ended = Pid::from_raw(child.id().cast_signed())
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|error| StartError::Watch(error.into()))?;
    let terminal = terminal.map(|pair| pair.master);
    let (input, outputs) = match &terminal {
        Some(master) => {
            let again = || master.try_clone().map_err(StartError::Terminal);
            (Some(again()?), vec![again()?])
        }
        None => pipes(&mut child),
    };
    for stream in input.iter().chain(&outputs) {
        rustix::io::ioctl_fionbio(stream, true).map_err(|error| StartError::Watch(error.into()))?;
    }
    Ok(Started {
        child,
        ended,
        input,
        outputs,
        terminal,
        cwd,
    })
}

fn enter(directory: Option<&[u8]>) -> Result<PathBuf, StartError> {
    if let Some(directory) = directory {
        let path = Path::new(OsStr::from_bytes(directory));
        std::env::set_current_dir(path).map_err(|source| StartError::Directory {
            path: path.into(),
            source,
        })?;
    }
    Ok(std::env::current_dir().unwrap_or_default())
}

fn command(program: &Program) -> Result<Command, StartError> {
    let shell = PathBuf::from(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    Ok(match program {
        Program::Shell => shell::login(&shell),
        Program::Line(line) => shell::line(&shell, line),
        Program::Arguments(arguments) => {
            let (program, arguments) = arguments.split_first().ok_or(StartError::Nothing)?;
            let mut command = Command::new(OsStr::from_bytes(program));
            command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
            command
        }
    })
}

fn set_environment(command: &mut Command, variables: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StartError> {
    for (name, value) in variables {
        if name.is_empty() || name.contains(&b'=') {
            return Err(StartError::Variable(OsStr::from_bytes(name).into()));
        }
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    Ok(())
}

fn put_on_terminal(command: &mut Command, terminal: &Terminal) -> io::Result<PtyPair> {
    let size = Size::in_characters(terminal.cols, terminal.rows);
    let pair = PtyPair::open(size, |settings| settings.input_modes.insert(InputModes::IUTF8))?;
    let slave = || pair.slave.try_clone().map(Stdio::from);
    command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
    command.env("TERM", &terminal.term).env("SSH_TTY", &pair.device);
    Ok(pair)
}

/// This end of the pipes to a process: of its input, and of its outputs.
fn pipes(child: &mut Child) -> (Option<OwnedFd>, Vec<OwnedFd>) {
    let outputs = [
        child.stdout.take().map(OwnedFd::from),
        child.stderr.take().map(OwnedFd::from),
    ];
    (
        child.stdin.take().map(OwnedFd::from),
        outputs.into_iter().flatten().collect(),
    )
}

/// Runs in the child.
fn become_leader(has_terminal: bool) -> io::Result<()> {
    signal_fd::unblock_all();
    rustix::process::setsid()?;
    if has_terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    // Without its keeper it would run on with nobody to see it.
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}
