//! When the driver hears that its packets were taken.
//!
//! It frees their memory then, and nothing else depends on it. So that can wait for the next packet to the guest: the
//! transport has one interrupt for all queues, and each is an exit and a turn of the guest. How long and how much
//! waits is bounded, for drivers and programs that count on it after all.

use std::time::{Duration, Instant};

/// Packets that may wait; a smaller queue waits for half of its own.
const MAX_PACKETS: u16 = 64;

/// Payload that may wait, in bytes.
const MAX_BYTES: usize = 256 << 10;

/// How long a packet may wait.
const MAX_WAIT: Duration = Duration::from_millis(10);

/// The packets taken since the driver was last told.
#[derive(Debug)]
pub(super) struct Completions {
    packets: u16,
    bytes: usize,
    max_packets: u16,
    deadline: Option<Instant>,
}

impl Completions {
    /// None, of a queue with `size` entries.
    pub(super) fn new(size: u16) -> Self {
        Self {
            packets: 0,
            bytes: 0,
            max_packets: MAX_PACKETS.min(size / 2).max(1),
            deadline: None,
        }
    }

    /// A packet with `len` bytes of payload was taken.
    pub(super) fn add(&mut self, len: usize, now: Instant) {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self.bytes.saturating_add(len);
        self.deadline.get_or_insert(now + MAX_WAIT);
    }

    /// Whether there is anything to tell.
    pub(super) fn are_pending(&self) -> bool {
        self.packets > 0
    }

    /// Whether the driver has to be told now. A deadline that passed is forgotten.
    pub(super) fn are_due(&mut self, now: Instant) -> bool {
        let is_late = self.deadline.is_some_and(|deadline| deadline <= now);
        if is_late {
            self.deadline = None;
        }
        self.are_pending() && (is_late || self.packets >= self.max_packets || self.bytes >= MAX_BYTES)
    }

    /// The driver was told. The deadline stays for what comes next, so that not every packet sets a timer.
    pub(super) fn told(&mut self) {
        self.packets = 0;
        self.bytes = 0;
    }

    /// When [`Self::are_due`] has to be asked again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_waits_until_its_deadline_and_much_does_not() {
        let now = Instant::now();
        let mut completions = Completions::new(256);
        assert!(!completions.are_due(now));
        completions.add(100, now);
        assert!(!completions.are_due(now));
        assert!(completions.are_due(now + MAX_WAIT));

        completions.told();
        assert!(!completions.are_due(now + 2 * MAX_WAIT));
        completions.add(MAX_BYTES, now);
        assert!(completions.are_due(now));

        completions.told();
        (0..MAX_PACKETS).for_each(|_| completions.add(0, now));
        assert!(completions.are_due(now));
    }

    #[test]
    fn a_small_queue_never_waits_with_all_its_packets() {
        for size in [1, 2, 4] {
            let mut completions = Completions::new(size);
            let now = Instant::now();
            (0..size.div_ceil(2)).for_each(|_| completions.add(0, now));
            assert!(completions.are_due(now), "{size}");
        }
    }
}
