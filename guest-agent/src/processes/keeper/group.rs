//! Signals to all that belongs to a process.

use std::fs;

use rustix::process::{Pid, Signal};

/// Signals the process's group. Only while the process is not reaped: then the number is another's, maybe.
///
/// # Errors
/// As `kill(2)`.
pub(super) fn signal_group(leader: Pid, signal: Signal) -> rustix::io::Result<()> {
    rustix::process::kill_process_group(leader, signal)
}

/// Signals every process of the session that the process leads. Only while the process is not reaped.
pub(super) fn signal_session(leader: Pid, signal: Signal) {
    // Who is gone meanwhile, or another user's now, is beyond reach.
    let _ = signal_group(leader, signal);
    for member in members(leader) {
        let _ = rustix::process::kill_process(member, signal);
    }
}

fn members(leader: Pid) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|process| Pid::from_raw(process.file_name().to_str()?.parse().ok()?))
        .filter(|pid| {
            let pid = pid.as_raw_nonzero().get();
            // SAFETY: a plain system call. Some processes have the session 0, which rustix does not expect.
            unsafe { libc::getsid(pid) == leader.as_raw_nonzero().get() }
        })
        .collect()
}
