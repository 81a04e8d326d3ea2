//! When a process is ended, and when its keeper goes.

use std::time::{Duration, Instant};

/// How long a process has between being told to end and being killed.
const GRACE: Duration = Duration::from_secs(5);

/// How long the end of a process is remembered that nobody was told of.
const LINGER: Duration = Duration::from_secs(10 * 60);

/// What to do to the process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    Hangup,
    Terminate,
    Kill,
}

/// The times of a process and of its keeper.
#[derive(Debug)]
pub(super) struct Lifetime {
    deadline: Option<Instant>,
    survives: bool,
    /// The client that started it is gone, and it does not survive that.
    is_orphan: bool,
    timed_out: bool,
    /// It was told to end, and is killed then.
    kill_at: Option<Instant>,
    is_ending: bool,
    /// Its end is remembered until then.
    linger_until: Option<Instant>,
    /// Nobody needs to know how it ended, or somebody does know.
    is_forgotten: bool,
}

impl Lifetime {
    /// With a timeout; zero is none.
    pub(super) fn new(timeout: Duration, survives: bool) -> Self {
        let deadline = (!timeout.is_zero()).then(|| Instant::now().checked_add(timeout));
        Self {
            deadline: deadline.flatten(),
            survives,
            is_orphan: false,
            timed_out: false,
            kill_at: None,
            is_ending: false,
            linger_until: None,
            is_forgotten: false,
        }
    }

    /// How long nothing is to be done.
    pub(super) fn next_deadline(&self, is_running: bool) -> Option<Duration> {
        let next = if is_running {
            if self.is_orphan && !self.is_ending {
                return Some(Duration::ZERO);
            }
            [self.deadline.filter(|_| !self.is_ending), self.kill_at]
        } else {
            [self.linger_until.filter(|_| !self.is_forgotten), None]
        };
        let next = next.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// What is to be done to the process now.
    pub(super) fn due(&mut self, is_running: bool, has_terminal: bool) -> Option<Order> {
        if !is_running {
            return None;
        }
        let now = Instant::now();
        if !self.is_ending {
            let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
            if !is_late && !self.is_orphan {
                return None;
            }
            self.is_ending = true;
            self.timed_out = is_late;
            self.kill_at = Some(now + GRACE);
            // An interactive shell ignores SIGTERM, but not that its terminal is gone.
            return Some(if has_terminal || self.is_orphan {
                Order::Hangup
            } else {
                Order::Terminate
            });
        }
        if self.kill_at.is_some_and(|kill_at| now >= kill_at) {
            self.kill_at = None;
            return Some(Order::Kill);
        }
        None
    }

    /// Whether it was told to end.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Whether its time was over.
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out
    }

    pub(super) fn process_ended(&mut self) {
        self.linger_until = Some(Instant::now() + LINGER);
    }

    /// The client that started the process is gone.
    pub(super) fn starter_left(&mut self) {
        if !self.survives {
            self.is_orphan = true;
            self.is_forgotten = true;
        }
    }

    /// Somebody knows how the process ended, or nobody will ask any more.
    pub(super) fn forget(&mut self) {
        self.is_forgotten = true;
    }

    /// Whether the end of the process need not be remembered.
    pub(super) fn is_forgotten(&self) -> bool {
        self.is_forgotten || self.linger_until.is_some_and(|until| Instant::now() >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_timeout_is_left_alone_and_waits_for_no_clock() {
        let mut lifetime = Lifetime::new(Duration::ZERO, true);
        lifetime.starter_left();
        assert_eq!(lifetime.due(true, false), None);
        assert_eq!(lifetime.next_deadline(true), None);
    }

    #[test]
    fn a_process_that_is_late_is_told_once_and_killed_after_its_grace() {
        let mut lifetime = Lifetime::new(Duration::from_nanos(1), true);
        assert_eq!(lifetime.due(true, false), Some(Order::Terminate));
        assert_eq!(lifetime.due(true, false), None);
        assert!(lifetime.timed_out() && lifetime.is_ending());
        lifetime.kill_at = Some(Instant::now());
        assert_eq!(lifetime.due(true, false), Some(Order::Kill));
        assert_eq!((lifetime.due(true, false), lifetime.next_deadline(true)), (None, None));
    }

    #[test]
    fn a_process_goes_with_its_starter_unless_it_survives() {
        let mut lifetime = Lifetime::new(Duration::ZERO, false);
        assert_eq!(lifetime.due(true, false), None);
        lifetime.starter_left();
        assert_eq!(lifetime.next_deadline(true), Some(Duration::ZERO));
        assert_eq!(lifetime.due(true, false), Some(Order::Hangup));
        assert!(!lifetime.timed_out());
    }

    #[test]
    fn an_end_is_remembered_until_somebody_knows_it() {
        let mut lifetime = Lifetime::new(Duration::ZERO, true);
        lifetime.process_ended();
        assert!(!lifetime.is_forgotten() && lifetime.next_deadline(false).is_some());
        lifetime.forget();
        assert!(lifetime.is_forgotten());
    }
}
