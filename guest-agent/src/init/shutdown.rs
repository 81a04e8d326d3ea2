//! Ends the guest in order: processes are told, given a moment, killed; disks are written and let go.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitOptions};
use rustix::system::RebootCommand;

use super::mounts;
use super::root::Writable;
use super::signals::{Request, Signals};
use crate::console;

/// How long processes have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long the kernel has to bury what was killed.
const BURIAL: Duration = Duration::from_secs(1);

/// Ends the guest for `request`.
pub(super) fn end(signals: &Signals, request: Request, root: Option<&Writable>) -> ! {
    if let Request::End(name) = request {
        console::log(&format!("ending the guest ({name})"));
    }
    signal_all(Signal::TERM);
    // A stopped process would never see it.
    signal_all(Signal::CONT);
    if !wait_for_all(signals, GRACE) {
        signal_all(Signal::KILL);
        wait_for_all(signals, BURIAL);
    }
    rustix::fs::sync();
    mounts::release_disks();
    if let Some(root) = root {
        root.release();
    }
    reboot()
}

/// Resets the machine, which ends the virtual machine.
pub(super) fn reboot() -> ! {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::Restart) {
        console::log(&format!("cannot reset the machine: {error}"));
    }
    // PID 1 that exits makes the kernel panic, which ends the machine as well.
    std::process::exit(1)
}

fn signal_all(signal: Signal) {
    // SAFETY: PID -1 means every process but this one.
    unsafe { libc::kill(-1, signal.as_raw()) };
}

/// Reaps until no process is left, or for at most `limit`. Returns whether none is left.
fn wait_for_all(signals: &Signals, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_no_children) => return true,
            }
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return false;
        }
        let mut fds = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        let timeout = Timespec::try_from(remaining).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        while signals.next().is_some() {}
    }
}
