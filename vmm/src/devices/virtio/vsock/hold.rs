//! How long a `CONNECT` waits for a guest that does not listen yet.

use std::time::{Duration, Instant};

use super::config::HoldPolicy;
use super::timers::after;

/// The patience of one `CONNECT`.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    deadline: Instant,
    pause: Duration,
    max_pause: Duration,
    patience_when_ready: Duration,
}

impl Hold {
    /// The patience of a `CONNECT` that comes now; `guest_ready` once the guest has opened a connection to the host.
    pub(super) fn new(policy: &HoldPolicy, guest_ready: bool, now: Instant) -> Self {
        let patience = if guest_ready { policy.ready } else { policy.booting };
        Self {
            deadline: after(now, patience),
            pause: policy.first_retry,
            max_pause: policy.max_retry,
            patience_when_ready: policy.ready,
        }
    }

    /// When the client is refused.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When to ask the guest again after it refused now.
    pub(super) fn next_retry(&mut self, now: Instant) -> Instant {
        let at = after(now, self.pause);
        self.pause = self.pause.saturating_mul(2).min(self.max_pause);
        at
    }

    /// The guest opened a connection to the host: what it serves, it serves from now on.
    pub(super) fn guest_is_ready(&mut self, now: Instant) {
        self.deadline = self.deadline.min(after(now, self.patience_when_ready));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let now = Instant::now();
        let mut hold = Hold::new(&HoldPolicy::default(), false, now);
        let pauses: Vec<u128> = (0..8).map(|_| (hold.next_retry(now) - now).as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 200, 200]);
    }

    #[test]
    fn patience_depends_on_whether_the_guest_has_come_up() {
        let now = Instant::now();
        let policy = HoldPolicy::default();
        let mut hold = Hold::new(&policy, false, now);
        assert_eq!(hold.deadline() - now, policy.booting);
        hold.guest_is_ready(now + Duration::from_secs(10));
        assert_eq!(hold.deadline() - now, Duration::from_secs(12));
        assert_eq!(Hold::new(&policy, true, now).deadline() - now, policy.ready);
    }
}
