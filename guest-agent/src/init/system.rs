//! Host name, clock, limits and loopback of the guest.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use msb_protocol::identity::GuestConfig;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};
use rustix::time::{ClockId, Timespec};

use super::degraded;
use crate::syscall::check;

/// Open files a process has at first, and may ask for: what systemd gives.
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// Seconds between two times that the kernel adds up its counters of memory, instead of one: what it wakes an idle guest
/// for most. Meanwhile they are off by at most some hundred pages a CPU (Documentation/admin-guide/sysctl/vm.rst).
const STATISTICS_INTERVAL: &str = "10";

/// How long the guest has been running.
pub(super) fn uptime() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

/// Applies the configuration. What fails is said and done without.
pub(super) fn prepare(config: &GuestConfig) {
    let report = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            degraded(what, &error);
        }
    };
    // The host wrote the time just before it started the guest, so the guest's uptime has passed since.
    report("cannot set the clock", set_clock(config.realtime, uptime()));
    report("cannot set the host name", set_hostname(&config.hostname));
    report(
        "cannot raise the limit of open files",
        rustix::process::setrlimit(Resource::Nofile, OPEN_FILES).map_err(Into::into),
    );
    report("cannot bring up the loopback interface", loopback_up());
    report(
        "cannot let the kernel add up its counters less often",
        std::fs::write("/proc/sys/vm/stat_interval", STATISTICS_INTERVAL),
    );
}

/// Sets the clock to a time of the host that is `since` ago.
pub(super) fn set_clock((seconds, nanoseconds): (u64, u32), since: Duration) -> io::Result<()> {
    if seconds == 0 {
        return Ok(());
    }
    let now = Duration::new(seconds, nanoseconds).saturating_add(since);
    let now = Timespec::try_from(now).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::time::clock_settime(ClockId::Realtime, now)?)
}

pub(super) fn set_hostname(name: &str) -> io::Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the request is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("the flags are low bits");
    // SAFETY: the socket is open and the request names an interface and its flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}
