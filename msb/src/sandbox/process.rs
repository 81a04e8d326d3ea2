//! The VMM process of a sandbox, addressed without confusing it with a later process of the same pid.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::records::{ProcessIdentity, VolumeServer};

impl ProcessIdentity {
    /// The identity of the process that asks.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn of_self() -> io::Result<Self> {
        Self::of(rustix::process::getpid())
    }

    /// The identity of a process that lives, and cannot be waited for by anybody else.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn of(pid: Pid) -> io::Result<Self> {
        Ok(Self {
            pid: pid.as_raw_nonzero().get(),
            start_ticks: start_ticks(pid)?,
            boot_id: boot_id()?,
        })
    }

    /// Whether the host was started again since.
    pub(crate) fn is_of_earlier_boot(&self) -> bool {
        boot_id().is_ok_and(|boot_id| boot_id != self.boot_id)
    }

    /// The process, if it still lives.
    ///
    /// # Errors
    /// When /proc or the process cannot be examined.
    pub fn open(&self) -> io::Result<Option<Process>> {
        if boot_id()? != self.boot_id {
            return Ok(None);
        }
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            result => result?,
        };
        // From here on the descriptor means one process; whether that is the one that was meant, its start time says.
        match start_ticks(pid) {
            Ok(ticks) if ticks == self.start_ticks => Ok(Some(Process(fd))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl VolumeServer {
    /// Whether it serves: one that has ended is its VMM process's child until that ends.
    pub fn lives(&self) -> bool {
        let process = self.process.open().ok().flatten();
        process.is_some_and(|process| !process.wait(Duration::ZERO).unwrap_or(true))
    }
}

/// A process that was alive when this was made.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// Sends a signal, unless the process has ended.
    ///
    /// # Errors
    /// When it is not ours to signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Err(Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Blocks until the process has ended or `timeout` is over; says whether it has ended.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                result => return Ok(result? > 0),
            }
        }
    }
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim_end()
        .to_owned())
}

fn start_ticks(pid: Pid) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not as proc(5) says")))
}

/// Field 22 of `/proc/PID/stat`. The second field is the command in parentheses and may hold anything, so fields are
/// counted from the last parenthesis.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_command() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("1 (a) b ) S {}", fields.join(" "));
        assert_eq!(parse_start_ticks(&stat), Some(22));
        assert_eq!(parse_start_ticks("1 (a) S 4"), None);
    }

    #[test]
    fn a_process_is_not_taken_for_another_of_the_same_pid() {
        let own = ProcessIdentity::of_self().unwrap();
        assert!(own.open().unwrap().is_some());
        let earlier = ProcessIdentity {
            start_ticks: own.start_ticks - 1,
            ..own.clone()
        };
        assert!(earlier.open().unwrap().is_none());
        let before_reboot = ProcessIdentity {
            boot_id: String::new(),
            ..own
        };
        assert!(before_reboot.open().unwrap().is_none());
    }

    #[test]
    fn a_wait_ends_with_the_process() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let process = Process(pidfd_open(pid, PidfdFlags::empty()).unwrap());
        assert!(!process.wait(Duration::ZERO).unwrap());
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait(Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
        process.signal(Signal::KILL).unwrap();
    }
}
