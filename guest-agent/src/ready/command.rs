//! Whether a command succeeds.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::shell;

/// Runs a line in the user's shell. It is killed when `client` says something or goes.
pub(super) fn succeeds(line: &str, client: BorrowedFd<'_>) -> io::Result<bool> {
    let shell = std::env::var_os("SHELL").map_or_else(|| PathBuf::from("/bin/sh"), PathBuf::from);
    let mut command = shell::line(&shell, line.as_bytes());
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let mut fds = [
        PollFd::new(&process, PollFlags::IN),
        PollFd::from_borrowed_fd(client, PollFlags::IN),
    ];
    // An interrupted wait is that of a child that ended, or of nothing that matters here.
    let _ = poll(&mut fds, None);
    if !fds[1].revents().is_empty() {
        child.kill()?;
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn its_status_counts_and_it_ends_with_its_client() {
        let (ours, theirs) = io::pipe().unwrap();
        assert!(succeeds("exit 0", ours.as_fd()).unwrap());
        assert!(!succeeds("exit 3", ours.as_fd()).unwrap());
        drop(theirs);
        assert!(!succeeds("sleep 1000", ours.as_fd()).unwrap());
    }
}
