//! A process in namespaces of its own.

use std::fs;
use std::io;

use rustix::process::{Gid, Pid, Uid, getgid, getuid};

/// All namespaces but that of time. The user namespace is what lets an unprivileged process have the others.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// What [`fork`] returns, twice.
#[derive(Debug)]
pub enum Forked {
    /// In the parent.
    Parent(Pid),
    /// In the child.
    Child {
        /// Whether it has namespaces of its own.
        in_namespaces: bool,
    },
}

/// Forks a child in namespaces of its own, or, where the host allows none, in those of the parent.
///
/// # Safety
/// The process has one thread, so that the child may go on as any process.
///
/// # Errors
/// When the host refuses a process.
pub unsafe fn fork() -> io::Result<Forked> {
    let (uid, gid) = (getuid(), getgid());
    // SAFETY: the caller's promise; without a stack of its own the child goes on here, as with fork(2).
    let pid = unsafe { clone(NAMESPACES) };
    if let Ok(pid) = pid {
        let in_namespaces = true;
        return Ok(match Pid::from_raw(pid) {
            Some(child) => Forked::Parent(child),
            None => {
                map_ids(uid, gid)?;
                Forked::Child { in_namespaces }
            }
        });
    }
    // SAFETY: as above.
    let pid = unsafe { clone(0) }?;
    Ok(match Pid::from_raw(pid) {
        Some(child) => Forked::Parent(child),
        None => Forked::Child { in_namespaces: false },
    })
}

/// Without a map, files of this user that are made in the namespace would belong to nobody, which the kernel refuses.
fn map_ids(uid: Uid, gid: Gid) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{0} {0} 1", uid.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("{0} {0} 1", gid.as_raw()))
}

/// clone(2) as fork(2) with `flags`.
///
/// # Safety
/// As for [`fork`].
unsafe fn clone(flags: libc::c_int) -> io::Result<i32> {
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: no stack, no thread-local storage and no addresses are passed; the rest is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).expect("a process id is 32 bits")),
    }
}
