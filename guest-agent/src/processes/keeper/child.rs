//! Starts the process that a keeper keeps.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use msb_protocol::process::{Program, Start, Terminal};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::{InputModes, OptionalActions, Winsize};

use super::signals;

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
    for (name, value) in &start.env {
        if name.is_empty() || name.contains(&b'=') {
            return Err(StartError::Variable(OsStr::from_bytes(name).into()));
        }
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    let terminal = start.terminal.as_ref().map(Pair::open).transpose();
    let terminal = terminal.map_err(StartError::Terminal)?;
    match &terminal {
        Some(pair) => {
            let slave = || pair.slave.try_clone().map(Stdio::from).map_err(StartError::Terminal);
            command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
            command.env("TERM", &pair.term).env("SSH_TTY", &pair.device);
        }
        None => {
            let input = if start.input { Stdio::piped() } else { Stdio::null() };
            command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
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
    let mut input = child.stdin.take().map(OwnedFd::from);
    let mut outputs: Vec<OwnedFd> = child.stdout.take().map(OwnedFd::from).into_iter().collect();
    outputs.extend(child.stderr.take().map(OwnedFd::from));
    let mut master = None;
    if let Some(pair) = terminal {
        let again = || pair.master.try_clone().map_err(StartError::Terminal);
        input = Some(again()?);
        outputs.push(again()?);
        master = Some(pair.master);
    }
    for stream in input.iter().chain(&outputs) {
        rustix::io::ioctl_fionbio(stream, true).map_err(|error| StartError::Watch(error.into()))?;
    }
    Ok(Started {
        child,
        ended,
        input,
        outputs,
        terminal: master,
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
    let name = shell.file_name().unwrap_or(shell.as_os_str()).to_owned();
    // An image need not have a shell; the agent runs plain commands without one.
    let has_shell = shell.exists();
    Ok(match program {
        Program::Shell | Program::Line(_) if !has_shell => {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("msb-agent").arg("exec");
            if let Program::Line(line) = program {
                command.arg(OsStr::from_bytes(line));
            }
            command
        }
        Program::Shell => {
            let mut login = OsString::from("-");
            login.push(name);
            let mut command = Command::new(&shell);
            command.arg0(login);
            command
        }
        Program::Line(line) => {
            let mut command = Command::new(&shell);
            command.arg0(name).arg("-c").arg(OsStr::from_bytes(line));
            command
        }
        Program::Arguments(arguments) => {
            let (program, arguments) = arguments.split_first().ok_or(StartError::Nothing)?;
            let mut command = Command::new(OsStr::from_bytes(program));
            command.args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
            command
        }
    })
}

/// Runs in the child.
fn become_leader(has_terminal: bool) -> io::Result<()> {
    signals::unblock_all();
    rustix::process::setsid()?;
    if has_terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    // Without its keeper it would run on with nobody to see it.
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Both ends of a terminal.
struct Pair {
    master: OwnedFd,
    slave: OwnedFd,
    device: OsString,
    term: String,
}

impl Pair {
    fn open(terminal: &Terminal) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let device = OsString::from_vec(rustix::pty::ptsname(&master, Vec::new())?.into_bytes());
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let mut settings = rustix::termios::tcgetattr(&slave)?;
        settings.input_modes.insert(InputModes::IUTF8);
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &settings)?;
        resize(&master, terminal.cols, terminal.rows)?;
        Ok(Self {
            master,
            slave,
            device,
            term: terminal.term.clone(),
        })
    }
}

/// Tells a terminal its size in characters.
pub(super) fn resize(master: impl AsFd, cols: u32, rows: u32) -> io::Result<()> {
    let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let size = Winsize {
        ws_row: clamp(rows),
        ws_col: clamp(cols),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}
