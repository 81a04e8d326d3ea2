//! The signals of PID 1, read one by one instead of interrupting it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

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
pub(super) struct Signals(OwnedFd);

impl Signals {
    pub(super) fn block() -> io::Result<Self> {
        set_mask(&full_set());
        let mut watched = empty_set();
        for (signal, _) in WATCHED {
            // SAFETY: the set is initialized and the signal exists.
            unsafe { libc::sigaddset(&raw mut watched, signal) };
        }
        // SAFETY: the set is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const watched, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending request, without waiting.
    pub(super) fn next(&self) -> Option<Request> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.0, &mut record).ok()?;
        // The signal's number is the record's first field.
        let number = u32::from_ne_bytes(record[..read].get(..4)?.try_into().ok()?);
        let watched = |&&(signal, _): &&(libc::c_int, Request)| u32::try_from(signal) == Ok(number);
        WATCHED.iter().find(watched).map(|&(_, request)| request)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets signals through again, in a child.
pub(super) fn unblock() {
    set_mask(&empty_set());
}

fn set_mask(set: &libc::sigset_t) {
    // SAFETY: the set is initialized and the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, ptr::from_ref(set), ptr::null_mut()) };
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set that the call initializes.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialized above.
    unsafe { set.assume_init() }
}

fn full_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set that the call initializes.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: initialized above.
    unsafe { set.assume_init() }
}
