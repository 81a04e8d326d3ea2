//! Signals that are read one by one instead of interrupting.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::syscall::check;

/// A descriptor that is readable when one of its signals came.
#[derive(Debug)]
pub(crate) struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` in this thread and opens a descriptor for them. [`unblock_all`] undoes the first in a child.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub(crate) fn block(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut set = empty_set();
        for &signal in signals {
            // SAFETY: the set is initialized; a number that is no signal's changes nothing.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        change_mask(libc::SIG_BLOCK, &set);
        // SAFETY: the set is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        check(fd)?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The number of the next signal that came, without waiting.
    pub(crate) fn next(&self) -> Option<libc::c_int> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.0, &mut record).ok()?;
        // The signal's number is the record's first field.
        let number = u32::from_ne_bytes(record[..read].get(..4)?.try_into().ok()?);
        libc::c_int::try_from(number).ok()
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Blocks every signal in this thread.
pub(crate) fn block_all() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set that the call initializes.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: initialized above.
    change_mask(libc::SIG_SETMASK, &unsafe { set.assume_init() });
}

/// Lets all signals through again. It neither allocates nor locks, so a child may call it before it executes another
/// program.
pub(crate) fn unblock_all() {
    change_mask(libc::SIG_SETMASK, &empty_set());
}

fn change_mask(how: libc::c_int, set: &libc::sigset_t) {
    // SAFETY: the set is initialized and the old mask is not asked for.
    unsafe { libc::sigprocmask(how, ptr::from_ref(set), ptr::null_mut()) };
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set that the call initializes.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialized above.
    unsafe { set.assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_once_and_interrupts_nothing() {
        let signals = SignalFd::block(&[libc::SIGUSR1]).unwrap();
        assert_eq!(signals.next(), None);
        // SAFETY: the signal is blocked in this thread, which is the one it is sent to.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!((signals.next(), signals.next()), (Some(libc::SIGUSR1), None));
    }
}
