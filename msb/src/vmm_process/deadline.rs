//! The clock that ends a run whose time is over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::sandbox::deadline::TimeoutEnd;

/// How long a guest may take to shut down that was asked to because its time is over.
const GRACE: Duration = Duration::from_secs(10);

/// What is to be done now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Due {
    /// The guest is to be asked to shut down.
    ShutDown,
    /// The VM is to be ended, for this reason.
    End(&'static str),
}

/// The time that is left to a run, and how it ends. Time counts that the host was asleep: `CLOCK_BOOTTIME`.
#[derive(Debug)]
pub(super) struct Deadline {
    timer: OwnedFd,
    end: TimeoutEnd,
    is_over: bool,
}

impl Deadline {
    /// One that never comes.
    ///
    /// # Errors
    /// When the kernel has no timer to give.
    pub(super) fn never(end: TimeoutEnd) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            timer: timerfd_create(TimerfdClockId::Boottime, flags)?,
            end,
            is_over: false,
        })
    }

    /// Whether it has come.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// How the run ends.
    pub(super) fn end(&self) -> TimeoutEnd {
        self.end
    }

    /// Has it come `after` a time from now, or never.
    ///
    /// # Errors
    /// When the kernel refuses; it is as it was.
    pub(super) fn set(&mut self, after: Option<Duration>, end: TimeoutEnd) -> io::Result<()> {
        // Zero would be never.
        let after = after.map(|after| after.max(Duration::from_nanos(1)));
        let value = Timespec::try_from(after.unwrap_or_default()).map_err(io::Error::other)?;
        let interval = Timespec::default();
        let time = Itimerspec {
            it_interval: interval,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        self.end = end;
        Ok(())
    }

    /// What is due, if the time is over. `can_ask` is whether there is a guest that could shut down; one that is asked gets
    /// some time for it, and then it is due to be ended.
    pub(super) fn take(&mut self, can_ask: bool) -> Option<Due> {
        rustix::io::read(&self.timer, &mut [0_u8; 8]).ok()?;
        if self.is_over {
            return Some(Due::End("the guest did not shut down within 10 s and was killed"));
        }
        self.is_over = true;
        let asks = self.end == TimeoutEnd::Stop && can_ask && self.set(Some(GRACE), self.end).is_ok();
        Some(if asks { Due::ShutDown } else { Due::End("killed") })
    }
}

impl AsFd for Deadline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::time::timerfd_gettime;

    use super::*;

    fn await_timer(deadline: &Deadline) {
        poll(&mut [PollFd::new(deadline, PollFlags::IN)], None).unwrap();
    }

    #[test]
    fn a_time_that_is_reset_or_taken_away_does_not_come() {
        let mut deadline = Deadline::never(TimeoutEnd::Stop).unwrap();
        deadline.set(Some(Duration::ZERO), TimeoutEnd::Stop).unwrap();
        await_timer(&deadline);
        deadline.set(Some(Duration::from_secs(3600)), TimeoutEnd::Stop).unwrap();
        assert_eq!((deadline.take(true), deadline.is_over()), (None, false));
        deadline.set(None, TimeoutEnd::Stop).unwrap();
        let left = timerfd_gettime(&deadline.timer).unwrap();
        assert_eq!((left.it_value.tv_sec, left.it_value.tv_nsec), (0, 0));
    }

    #[test]
    fn a_guest_is_asked_once_and_then_ended() {
        let mut deadline = Deadline::never(TimeoutEnd::Stop).unwrap();
        deadline.set(Some(Duration::from_millis(1)), TimeoutEnd::Stop).unwrap();
        await_timer(&deadline);
        assert_eq!(deadline.take(true), Some(Due::ShutDown));
        assert_eq!(deadline.take(true), None, "it has its grace");
        deadline.set(Some(Duration::ZERO), TimeoutEnd::Stop).unwrap();
        await_timer(&deadline);
        assert!(matches!(deadline.take(true), Some(Due::End(why)) if why.contains("10 s")));
    }

    #[test]
    fn what_cannot_be_asked_or_need_not_be_is_ended_at_once() {
        for (end, can_ask) in [(TimeoutEnd::Kill, true), (TimeoutEnd::Stop, false)] {
            let mut deadline = Deadline::never(TimeoutEnd::Stop).unwrap();
            deadline.set(Some(Duration::ZERO), end).unwrap();
            await_timer(&deadline);
            assert_eq!(deadline.take(can_ask), Some(Due::End("killed")));
            assert!(deadline.is_over());
        }
    }
}
