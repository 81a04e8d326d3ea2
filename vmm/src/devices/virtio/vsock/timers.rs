//! Deadlines, at most one for each thing that can have one, on one timer descriptor.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// The longest wait: far beyond any use, and far from where clocks overflow.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The deadline `wait` after `now`.
pub(super) fn after(now: Instant, wait: Duration) -> Instant {
    now + wait.min(MAX_WAIT)
}

/// What has a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum TimerKey {
    /// The listener, which rests after the host refused it something.
    Listener,
    /// The queues, which have something to tell the driver.
    Queues,
    /// A client in its handshake, by slot.
    Handshake(u16),
    /// A connection, by slot.
    Connection(u16),
}

/// All deadlines of a device. While there is none, the timer descriptor is silent.
#[derive(Debug)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, TimerKey)>,
    deadlines: HashMap<TimerKey, Instant>,
    armed: Option<Instant>,
    fd: OwnedFd,
}

impl Timers {
    /// No deadline yet.
    ///
    /// # Errors
    /// When the host is out of descriptors or memory.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            queue: BTreeSet::new(),
            deadlines: HashMap::new(),
            armed: None,
            fd: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?,
        })
    }

    /// Sets, moves or removes the deadline of `key`.
    pub(super) fn set(&mut self, key: TimerKey, deadline: Option<Instant>) {
        if self.deadlines.get(&key).copied() == deadline {
            return;
        }
        if let Some(old) = self.deadlines.remove(&key) {
            self.queue.remove(&(old, key));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert(key, deadline);
            self.queue.insert((deadline, key));
        }
    }

    /// How many deadlines of clients and connections there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.queue.len(), self.deadlines.len());
        self.deadlines.keys().filter(|key| **key != TimerKey::Queues).count()
    }

    /// Takes a deadline that has passed.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<TimerKey> {
        let &(deadline, key) = self.queue.first()?;
        if deadline > now {
            return None;
        }
        self.set(key, None);
        Some(key)
    }

    /// Makes the descriptor readable at the earliest deadline. A system call only when that changed.
    ///
    /// # Errors
    /// What `timerfd_settime(2)` says.
    pub(super) fn arm(&mut self, now: Instant) -> io::Result<()> {
        let next = self.queue.first().map(|(deadline, _)| *deadline);
        if next == self.armed {
            return Ok(());
        }
        // A zero time would disarm the timer.
        let wait = next.map_or(Duration::ZERO, |at| {
            at.saturating_duration_since(now).max(Duration::from_nanos(1))
        });
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        rustix::time::timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &spec)?;
        self.armed = next;
        Ok(())
    }

    /// Silences the descriptor after it fired.
    pub(super) fn acknowledge(&mut self) {
        // Nothing to read means that the timer was set anew since it fired: then it is armed.
        if rustix::io::read(&self.fd, &mut [0; 8]).is_ok() {
            self.armed = None;
        }
    }
}

impl AsFd for Timers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec as PollTime};

    use super::*;

    fn is_readable(timers: &Timers, wait_seconds: i64) -> bool {
        let mut fds = [PollFd::new(timers, PollFlags::IN)];
        let timeout = PollTime {
            tv_sec: wait_seconds,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
    }

    #[test]
    fn deadlines_come_due_in_their_order_and_not_before() {
        let mut timers = Timers::new().unwrap();
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        timers.set(TimerKey::Connection(1), Some(at(3)));
        timers.set(TimerKey::Handshake(1), Some(at(1)));
        timers.set(TimerKey::Connection(2), Some(at(2)));
        timers.set(TimerKey::Connection(1), Some(at(1)));
        timers.set(TimerKey::Connection(2), None);

        assert_eq!(timers.pop_due(now), None);
        assert_eq!(timers.pop_due(at(1)), Some(TimerKey::Handshake(1)));
        assert_eq!(timers.pop_due(at(1)), Some(TimerKey::Connection(1)));
        assert_eq!(timers.pop_due(at(9)), None);
    }

    #[test]
    fn the_descriptor_fires_for_a_deadline_that_passed_and_is_silent_without_one() {
        let mut timers = Timers::new().unwrap();
        let now = Instant::now();
        timers.set(TimerKey::Listener, Some(now));
        timers.arm(now).unwrap();
        assert!(is_readable(&timers, 10));

        timers.acknowledge();
        assert_eq!(timers.pop_due(now), Some(TimerKey::Listener));
        timers.arm(now).unwrap();
        assert!(!is_readable(&timers, 0));
    }
}
