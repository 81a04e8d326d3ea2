//! SIGTERM, read instead of dying of it: at the end of the guest everything is told to end, and the process needs its
//! keeper until it has.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// A descriptor that is readable when SIGTERM came.
#[derive(Debug)]
pub(super) struct Terminations(OwnedFd);

impl Terminations {
    /// Blocks the signal, which [`unblock_all`] undoes in a child.
    pub(super) fn block() -> io::Result<Self> {
        let mut set = empty_set();
        // SAFETY: the set is initialized and the signal exists.
        unsafe { libc::sigaddset(&raw mut set, libc::SIGTERM) };
        // SAFETY: the set is initialized and the old mask is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        // SAFETY: the set is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the signal that came.
    pub(super) fn take(&self) {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        let _ = rustix::io::read(&self.0, &mut record);
    }
}

impl AsFd for Terminations {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets all signals through again.
pub(super) fn unblock_all() {
    let set = empty_set();
    // SAFETY: the set is initialized and the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) };
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set that the call initializes.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialized above.
    unsafe { set.assume_init() }
}
