//! How a vCPU's thread is called out of `KVM_RUN` without a signal handler, which would be the whole process's.
//!
//! The thread blocks the signal, and KVM unblocks it while the guest runs (`KVM_SET_SIGNAL_MASK`): a pending signal ends
//! `KVM_RUN` with `EINTR` and stays pending. So a kick before `KVM_RUN` is not lost either.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use kvm_bindings::kvm_signal_mask;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

/// `KVM_SET_SIGNAL_MASK`, `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;
/// Bytes of the kernel's `sigset_t`.
const KERNEL_SIGSET: u32 = 8;

/// `struct kvm_signal_mask` with the set that follows it.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    blocked: u64,
}
const _: () = assert!(std::mem::offset_of!(SignalMask, blocked) == size_of::<kvm_signal_mask>());

/// Starts a thread by `spawn` that blocks the kick from its first instruction on: a kick may come before it has run, and
/// a signal that is neither blocked nor handled ends the process.
pub(super) fn spawn_blocked<T>(spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let was_blocked = block_in_thread(libc::SIGRTMIN())?.is_blocked;
    let spawned = spawn();
    if !was_blocked {
        unblock_in_thread(libc::SIGRTMIN());
    }
    spawned
}

/// Lets the calling thread, which blocks kicks, receive them only while it runs the guest of `vcpu`.
pub(super) fn receive_only_in_guest(vcpu: &VcpuFd) -> io::Result<()> {
    let blocked = block_in_thread(libc::SIGRTMIN())?.others;
    let mask = SignalMask {
        len: KERNEL_SIGSET,
        blocked,
    };
    // SAFETY: the argument is what the ioctl reads: a length and as many bytes of signal set.
    let result = unsafe { ioctl_with_ref(&vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &mask) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Kicks a thread.
pub(super) fn send(thread: libc::pthread_t) {
    // SAFETY: the caller holds the thread's join handle, so the ID is valid; the signal is blocked in that thread or
    // handled by KVM, never by a handler.
    unsafe { libc::pthread_kill(thread, libc::SIGRTMIN()) };
}

/// Takes the kicks that the calling thread, which blocks them, has received: one that stayed would call it out of each
/// `KVM_RUN` to come.
pub(super) fn forget() {
    let kick = set_of(libc::SIGRTMIN());
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: set and timeout are valid, and the signal's description is not asked for.
    while unsafe { libc::sigtimedwait(&raw const kick, std::ptr::null_mut(), &raw const now) } > 0 {}
}

/// What a thread blocked before.
struct Blocked {
    /// The signal in question.
    is_blocked: bool,
    /// All others, as the kernel's set.
    others: u64,
}

/// Blocks `signal` in the calling thread.
fn block_in_thread(signal: i32) -> io::Result<Blocked> {
    let set = set_of(signal);
    let mut before = set;
    // SAFETY: both sets are valid for the call.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let is_blocked = |number: i32| {
        // SAFETY: `before` is a valid set and the number is in the kernel's range.
        unsafe { libc::sigismember(&raw const before, number) == 1 }
    };
    let others = (1..=64).filter(|number| *number != signal && is_blocked(*number));
    Ok(Blocked {
        is_blocked: is_blocked(signal),
        others: others.fold(0, |bits, number| bits | 1 << (number - 1)),
    })
}

fn unblock_in_thread(signal: i32) {
    let set = set_of(signal);
    // SAFETY: the set is valid for the call, and the one before is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
}

/// The set of one signal.
fn set_of(signal: i32) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initializes the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialized above.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: a valid set and a valid signal number.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_inherits_the_block_and_its_maker_does_not_keep_it() {
        let inherited = spawn_blocked(|| Ok(std::thread::spawn(|| block_in_thread(libc::SIGRTMIN()))));
        assert!(inherited.unwrap().join().unwrap().unwrap().is_blocked);
        assert!(!block_in_thread(libc::SIGRTMIN()).unwrap().is_blocked);
        unblock_in_thread(libc::SIGRTMIN());
    }

    #[test]
    fn the_set_for_the_guest_lacks_only_the_kick() {
        std::thread::spawn(|| {
            block_in_thread(libc::SIGUSR1).unwrap();
            block_in_thread(libc::SIGRTMIN()).unwrap();
            assert_eq!(
                block_in_thread(libc::SIGRTMIN()).unwrap().others,
                1 << (libc::SIGUSR1 - 1)
            );
        })
        .join()
        .unwrap();
    }
}
