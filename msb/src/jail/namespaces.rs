//! A process in namespaces of its own.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, Signal, WaitOptions, getgid, getuid, kill_process, waitpid};

use super::cgroup::Cgroup;

/// All namespaces but that of time. The user namespace is what lets an unprivileged process have the others.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// `linux/sched.h`; of clone3(2) only, and too wide for the C library's type of flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

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

/// Forks a child in namespaces of its own, or, where the host allows none, in those of the parent; in `cgroup`, if there is
/// one, before it goes on.
///
/// # Safety
/// The process has one thread, so that the child may go on as any process.
///
/// # Errors
/// When the host refuses a process, or the cgroup does not take it: there is no child then.
pub unsafe fn fork(cgroup: Option<&Cgroup>) -> io::Result<Forked> {
    // SAFETY: the caller's promise.
    let isolated = unsafe { fork_when(NAMESPACES, cgroup, map_ids) };
    let (forked, in_namespaces) = match isolated {
        Ok(forked) => (forked, true),
        // SAFETY: the caller's promise.
        Err(_) => (unsafe { fork_when(0, cgroup, |_| Ok(())) }?, false),
    };
    Ok(match forked {
        Held::Child => Forked::Child { in_namespaces },
        Held::Parent(pid) => Forked::Parent(pid),
    })
}

/// A child that was let go by its parent.
enum Held {
    Parent(Pid),
    Child,
}

/// Forks a child in `cgroup` that goes on when `prepare` has succeeded.
///
/// # Safety
/// As for [`fork`].
unsafe fn fork_when(
    flags: libc::c_int,
    cgroup: Option<&Cgroup>,
    prepare: impl FnOnce(Pid) -> io::Result<()>,
) -> io::Result<Held> {
    let (ours, theirs) = UnixStream::pair()?;
    let place = |child| cgroup.map_or(Ok(()), |cgroup| cgroup.attach(child).map_err(io::Error::other));
    // SAFETY: the caller's promise; without a stack of its own the child goes on here, as with fork(2).
    let (child, is_placed) = unsafe { clone(flags, cgroup) }?;
    let Some(child) = Pid::from_raw(child) else {
        drop(ours);
        wait_for(&theirs);
        return Ok(Held::Child);
    };
    let placed = if is_placed { Ok(()) } else { place(child) };
    match placed
        .and_then(|()| prepare(child))
        .and_then(|()| (&ours).write_all(&[0]))
    {
        Ok(()) => Ok(Held::Parent(child)),
        Err(error) => {
            discard(child);
            Err(error)
        }
    }
}

/// In the child: waits for the parent's word. Without it there is nothing to go on for.
fn wait_for(mut parent: &UnixStream) {
    if parent.read_exact(&mut [0]).is_err() {
        // SAFETY: it ends this process at once, without running anything of the parent's.
        unsafe { libc::_exit(1) }
    }
}

/// In the parent: ends a child that was not let go.
fn discard(child: Pid) {
    // A child of one's own can be killed and waited for.
    let _ = kill_process(child, Signal::KILL);
    let _ = waitpid(Some(child), WaitOptions::empty());
}

/// Without a map, files of this user that are made in the namespace would belong to nobody, which the kernel refuses.
///
/// Root maps all users it has: the child opens files of any user as root would, and becomes another one. Anybody else can
/// map but themselves.
fn map_ids(child: Pid) -> io::Result<()> {
    let file = |name: &str| format!("/proc/{child}/{name}");
    let same = |map: &str| identity_of(&fs::read_to_string(format!("/proc/self/{map}"))?);
    if getuid().is_root() && fs::write(file("uid_map"), same("uid_map")?).is_ok() {
        return fs::write(file("gid_map"), same("gid_map")?);
    }
    fs::write(file("setgroups"), "deny")?;
    fs::write(file("uid_map"), format!("{0} {0} 1", getuid().as_raw()))?;
    fs::write(file("gid_map"), format!("{0} {0} 1", getgid().as_raw()))
}

/// The map under which every id that `map` has means itself (user_namespaces(7): inside, outside, length).
fn identity_of(map: &str) -> io::Result<String> {
    let lines = map.lines().map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (first, length) = (fields.next()?, fields.nth(1)?);
        Some(format!("{first} {first} {length}\n"))
    });
    lines
        .collect::<Option<String>>()
        .ok_or_else(|| io::Error::other("a map of ids is not as user_namespaces(7) says"))
}

/// clone3(2) as fork(2) with `flags`, past the C library, whose fork(3) takes none. Tells whether the child is in `cgroup`
/// already: a process that is made there waits for nobody, while one that is moved there waits until all CPUs have seen
/// it, some ten milliseconds. What refuses that, a filter of system calls or a cgroup that is gone, gets a plain clone(2).
///
/// The child executes no other program, so what fork(3) does besides is missing for good. None of it is needed:
/// - Handlers of `pthread_atfork` do not run. Nothing in this program registers any.
/// - Locks of the allocator and of standard streams are not made anew. With one thread, which is here, nobody holds them.
/// - The C library keeps the parent's thread id for the child's first thread. It uses it where one thread signals or
///   schedules another, and to tell who holds a recursive or error-checking mutex. Neither happens to that thread: only
///   vCPU threads are signalled, which have their right ids from `pthread_create`, and the standard library's locks are
///   of another kind. A signal to oneself, as abort(3) sends it, asks the kernel for the id.
/// - The list of robust mutexes is not registered anew. There are none.
///
/// # Safety
/// As for [`fork`].
unsafe fn clone(flags: libc::c_int, cgroup: Option<&Cgroup>) -> io::Result<(i32, bool)> {
    if let Some(Ok(directory)) = cgroup.map(Cgroup::open) {
        // SAFETY: zeros mean for each argument that it is not given.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = CLONE_INTO_CGROUP | u64::from(flags.cast_unsigned());
        arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        arguments.cgroup = u64::from(directory.as_raw_fd().cast_unsigned());
        // SAFETY: as below; the arguments are read before the call returns.
        match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
            -1 => {}
            pid => return Ok((pid_of(pid), true)),
        }
    }
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the child has a copy of the memory, in which it goes on on the same stack; no addresses are
    // passed. That one thread is enough for the C library to work in the child is argued above.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok((pid_of(pid), false)),
    }
}

fn pid_of(result: libc::c_long) -> i32 {
    i32::try_from(result).expect("a process id is 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_of_a_map_means_itself() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(identity_of(map).unwrap(), "0 0 1\n1 1 65536\n");
        assert!(identity_of("0 0\n").is_err());
    }
}
