//! What a running sandbox uses of its host, as the kernel counts it (proc(5)).

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::Sandbox;
use super::records::RunRecord;
use super::state::State;
use crate::store::StoreError;

/// `St` of a connected socket in `/proc/net/unix`.
const CONNECTED: &str = "03";

/// What a sandbox uses. What the kernel tells only to others is missing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// Processor time of the VM's process and its keeper since the start, in seconds.
    pub cpu_seconds: f64,
    /// Memory that both have in use, the guest's included, in bytes.
    pub memory_bytes: u64,
    /// What the VM's process may have at most, in bytes, where a cgroup holds it to that.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes that the VM's process had read from storage; what came from memory does not count.
    pub read_bytes: Option<u64>,
    /// Bytes that it had written there.
    pub written_bytes: Option<u64>,
    /// Connections to the guest that are open.
    pub connections: u64,
    /// Since the start, in seconds.
    pub uptime_seconds: u64,
}

impl Sandbox {
    /// What it uses; nothing while it does not run.
    ///
    /// # Errors
    /// When its records cannot be read.
    pub fn usage(&self) -> Result<Option<Usage>, StoreError> {
        match self.state()? {
            State::Running { run, .. } | State::Paused { run, .. } => Ok(usage_of(&run)),
            _ => Ok(None),
        }
    }

    /// Processor time of a run that is not over, ready or not, in seconds, if that can be told.
    pub(super) fn processor_seconds(&self) -> Option<f64> {
        let usage = usage_of(self.state().ok()?.run()?)?;
        Some(usage.cpu_seconds)
    }
}

/// Nothing when a process has ended meanwhile.
fn usage_of(run: &RunRecord) -> Option<Usage> {
    let vm = run.vm?;
    let processes = [run.process.pid, vm.pid];
    let mut ticks = 0;
    let mut memory_bytes = 0;
    for pid in processes {
        ticks += ticks_in(&read(pid, "stat").ok()?)?;
        memory_bytes += resident_in(&read(pid, "statm").ok()?)?;
    }
    // Of a process of another user, the kernel tells nobody but root.
    let io = read(vm.pid, "io").unwrap_or_default();
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let uptime = Timestamp::now().as_second() - run.started_at.as_second();
    Some(Usage {
        cpu_seconds: seconds(ticks),
        memory_bytes,
        memory_limit_bytes: vm.layers.limits.map(|limits| u64::from(limits.memory_mib) << 20),
        read_bytes: value_of("read_bytes", &io),
        written_bytes: value_of("write_bytes", &io),
        connections: connections_to(&run.socket, &sockets),
        uptime_seconds: u64::try_from(uptime).unwrap_or(0),
    })
}

fn read(pid: i32, file: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
}

/// Fields 14 and 15 of `/proc/PID/stat`, `utime` and `stime`, behind the command in parentheses.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    let mut times = after_command.split_ascii_whitespace().skip(14 - 3);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    ticks()?.checked_add(ticks()?)
}

/// Clock ticks in seconds: of a sum, since a sum of seconds has no decimal fraction.
#[expect(clippy::cast_precision_loss, reason = "ticks are far below 2^52")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// The second field of `/proc/PID/statm`, in bytes.
fn resident_in(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

/// `KEY: VALUE` of `/proc/PID/io`.
fn value_of(key: &str, io: &str) -> Option<u64> {
    io.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found == key).then(|| value.trim().parse().ok())?
    })
}

/// The ends that the VM has of connections to its socket: they carry the name that it listens on.
fn connections_to(socket: &Path, sockets: &str) -> u64 {
    let is_one = |line: &&str| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.splitn(8, ' ').filter(|field| !field.is_empty());
        let state = fields.nth(5);
        state == Some(CONNECTED) && line.ends_with(&format!(" {}", socket.display()))
    };
    sockets.lines().filter(is_one).count() as u64
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_command() {
        let fields: Vec<String> = (4..=52).map(|field| (field * 100).to_string()).collect();
        let stat = format!("1 (a) b ) S {}", fields.join(" "));
        assert_eq!(ticks_in(&stat), Some(1400 + 1500));
        assert_eq!(ticks_in("1 (a) S 4"), None);
        assert_eq!(seconds(2741).to_string(), "27.41");
    }

    #[test]
    fn the_kernel_tells_of_this_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(resident_in(&read(own, "statm").unwrap()).unwrap() > 100_000);
        assert!(ticks_in(&read(own, "stat").unwrap()).is_some());
        assert!(value_of("read_bytes", &read(own, "io").unwrap()).is_some());
        assert_eq!(value_of("nothing", &read(own, "io").unwrap()), None);
    }

    #[test]
    fn only_what_is_connected_to_the_socket_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("v.sock"), dir.path().join("v.sock_1024"));
        let (listener, others) = (UnixListener::bind(&path).unwrap(), UnixListener::bind(&other).unwrap());
        let count = || connections_to(&path, &fs::read_to_string("/proc/net/unix").unwrap());
        assert_eq!(count(), 0);
        let clients: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let _elsewhere = (UnixStream::connect(&other).unwrap(), others.accept().unwrap());
        let accepted: Vec<_> = clients.iter().map(|_| listener.accept().unwrap()).collect();
        assert_eq!(count(), 3);
        drop((clients, accepted));
        assert_eq!(count(), 0);
    }
}
