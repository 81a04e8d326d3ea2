//! The signals of PID 1.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::signal_fd::{self, SignalFd};

/// What a signal asks of PID 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Request {
    /// A child ended.
    Reap,
    /// The guest shall end; the value is the signal, as busybox's `halt`, `poweroff` and `reboot` send it.
    End(&'static str),
}

const WATCHED: [(libc::c_int, Request); 6] = [
    (libc::SIGCHLD, Request::Reap),
    (libc::SIGUSR1, Request::End("halt")),
    (libc::SIGUSR2, Request::End("poweroff")),
    (libc::SIGTERM, Request::End("reboot")),
    (libc::SIGINT, Request::End("interrupt")),
    (libc::SIGPWR, Request::End("power")),
];

/// All signals are blocked; the watched ones are read from a descriptor.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    pub(super) fn block() -> io::Result<Self> {
        signal_fd::block_all();
        Ok(Self(SignalFd::block(&WATCHED.map(|(signal, _)| signal))?))
    }

    /// The next pending request, without waiting.
    pub(super) fn next(&self) -> Option<Request> {
        let number = self.0.next()?;
        let watched = WATCHED.iter().find(|&&(signal, _)| signal == number);
        watched.map(|&(_, request)| request)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
