//! Ends all that could still write: a layer is what a step left, not what it goes on doing.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long processes may take to end after SIGKILL, and may go on making others.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why processes go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum QuietError {
    /// They cannot be listed.
    #[error("cannot list the processes")]
    List(#[source] io::Error),
    /// They cannot be ended.
    #[error("cannot end process {0}")]
    Kill(i32, #[source] io::Error),
    /// They do not end.
    #[error("processes of the step do not end: {0} is one")]
    Alive(i32),
}

/// Ends every process whose program is not this one, and those that they start meanwhile.
pub(super) fn end_others() -> Result<(), QuietError> {
    let deadline = Instant::now() + PATIENCE;
    let own = program_of("self").ok_or_else(|| QuietError::List(io::ErrorKind::NotFound.into()))?;
    loop {
        let others = others(own).map_err(QuietError::List)?;
        let Some(&(first, _)) = others.first() else {
            return Ok(());
        };
        for (pid, process) in &others {
            match pidfd_send_signal(process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(QuietError::Kill(pid.as_raw_nonzero().get(), error.into())),
            }
        }
        for (pid, process) in &others {
            await_end(process, deadline).map_err(|error| QuietError::Kill(pid.as_raw_nonzero().get(), error))?;
        }
        if Instant::now() >= deadline {
            return Err(QuietError::Alive(first.as_raw_nonzero().get()));
        }
    }
}

fn others(own: (u64, u64)) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let mut others = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let (Some(pid), Some(name)) = (pid, name.to_str()) else {
            continue;
        };
        // Opened first: what is then found of the number is of this process, or it has ended.
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Threads of the kernel have no program, nor has what has ended.
            Ok(process) if program_of(name).is_some_and(|program| program != own) => others.push((pid, process)),
            Ok(_) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(others)
}

/// The file that a process runs.
fn program_of(pid: &str) -> Option<(u64, u64)> {
    let program = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((program.dev(), program.ino()))
}

fn await_end(process: &OwnedFd, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
