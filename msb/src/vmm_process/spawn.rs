//! Starts a VMM process that lives on when its starter ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::args::{SavedFds, VmmArgs};
use crate::store::files::{self, FileError};
use crate::store::layout::Layout;
use crate::store::lock::RunLock;

/// Why there is no VMM process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Its log cannot be made.
    #[error(transparent)]
    Log(#[from] FileError),
    /// There is no socket to it.
    #[error("cannot make a socket for the VMM process")]
    Socket(#[source] io::Error),
    /// It cannot be executed.
    #[error("cannot execute {} in the background", program.display())]
    Execute {
        /// What was to be executed.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An argument cannot be passed.
    #[error("cannot tell the VMM process its paths: they must be UTF-8")]
    Arguments(#[source] serde_json::Error),
}

/// Where a saved VM goes on from.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// The state of everything but memory and disks.
    pub state: &'a File,
    /// The memory. It is mapped, and must not change as long as the VM lives.
    pub memory: &'a File,
}

/// Executes `program` as a VMM process that inherits `lock` and what is `saved`, and returns the socket to it. `args` gets the descriptors.
///
/// # Errors
/// When there is no such process then; the lock is free again.
pub fn spawn(
    program: &Path,
    mut args: VmmArgs,
    lock: RunLock,
    saved: Option<Saved<'_>>,
    log: &Path,
) -> Result<UnixStream, SpawnError> {
    let log = files::create_log(log)?;
    let (ours, theirs) = UnixStream::pair().map_err(SpawnError::Socket)?;
    let error_log = log.try_clone().map_err(SpawnError::Socket)?;
    args.lock_fd = lock.as_fd().as_raw_fd();
    args.status_fd = theirs.as_raw_fd();
    args.saved = saved.map(|saved| SavedFds {
        state: saved.state.as_raw_fd(),
        memory: saved.memory.as_raw_fd(),
    });
    let mut inherited = vec![args.lock_fd, args.status_fd];
    inherited.extend(args.saved.iter().flat_map(|saved| [saved.state, saved.memory]));
    let json = serde_json::to_string(&args).map_err(SpawnError::Arguments)?;

    let mut command = Command::new(program);
    command.arg(json);
    // What the user's environment holds is nothing to a guest that takes its VMM over.
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error_log);
    execute_detached(&mut command, program, inherited)?;
    // The VMM process has its own by now.
    drop((lock, theirs));
    Ok(ours)
}

/// The standard streams of a process.
#[derive(Debug)]
pub struct Streams {
    /// What it reads.
    pub input: Stdio,
    /// Where it writes.
    pub output: Stdio,
    /// Where its errors go.
    pub errors: Stdio,
}

/// Executes `program` as msb with `arguments`, as a process that lives on when its starter ends, with a store at `layout`.
///
/// # Errors
/// When there is no such process then.
pub fn spawn_detached(program: &Path, arguments: &[&str], layout: &Layout, streams: Streams) -> Result<(), SpawnError> {
    let mut command = Command::new(program);
    command
        .arg0("msb")
        .args(arguments)
        .env("MSB_HOME", &layout.home)
        .env("MSB_RUNTIME_DIR", &layout.runtime)
        .current_dir("/")
        .stdin(streams.input)
        .stdout(streams.output)
        .stderr(streams.errors);
    execute_detached(&mut command, program, Vec::new())
}

fn execute_detached(command: &mut Command, program: &Path, inherited: Vec<RawFd>) -> Result<(), SpawnError> {
    // SAFETY: `detach` calls only functions that are safe between fork and exec; see there.
    unsafe { command.pre_exec(move || detach(&inherited)) };
    let execute = |source| SpawnError::Execute {
        program: program.to_owned(),
        source,
    };
    // What this waits for is the process that forked the detached one and ended.
    command.spawn().map_err(execute)?.wait().map_err(execute)?;
    Ok(())
}

/// Between fork and exec: continues in a child with a session of its own that nobody has to wait for, and lets the
/// descriptors through the exec. Neither allocates nor locks.
fn detach(inherited: &[RawFd]) -> io::Result<()> {
    // SAFETY: fork takes no argument; the child was single-threaded already, and goes on to exec.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {}
        // SAFETY: it ends this process without running anything of the starter's.
        _ => unsafe { libc::_exit(0) },
    }
    rustix::process::setsid()?;
    for &fd in inherited {
        // SAFETY: it changes a flag of a descriptor that the starter keeps open until the exec.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
