//! How much received channel data one SSH connection may hold.
//!
//! russh grants a channel new window when data *arrives*, not when it is consumed, so a consumer that stalls would let
//! its peer fill memory. What the library leaves to its user is the window it grants next. [`ReceiveBudget`] steers
//! that: while a connection holds less than its limit, the full window; above it, a window of [`TRICKLE_WINDOW`] bytes,
//! which keeps the peer's channel alive (a window never granted could never be reopened) at a few bytes a round trip.
//!
//! The bound: `limit`, plus one full window for each channel that was open when the limit was crossed, plus the trickle.

/// The window granted while a connection is over its limit, in bytes. russh grants anew when less than half of the
/// target is left: with 2, when it is used up.
pub const TRICKLE_WINDOW: u32 = 2;

/// Accounts for the received bytes that no consumer has taken yet, over all channels of one connection.
#[derive(Debug)]
pub struct ReceiveBudget {
    full_window: u32,
    limit: usize,
    resume: usize,
    held: usize,
    throttled: bool,
}

impl ReceiveBudget {
    /// A budget of `limit` bytes for a connection whose channels open with `full_window` bytes.
    pub fn new(full_window: u32, limit: usize) -> Self {
        Self {
            full_window,
            limit,
            resume: limit / 2,
            held: 0,
            throttled: false,
        }
    }

    /// `bytes` arrived and wait for their consumer.
    pub fn received(&mut self, bytes: usize) {
        self.held = self.held.saturating_add(bytes);
        self.throttled |= self.held > self.limit;
    }

    /// A consumer took `bytes`, or its channel is gone with them.
    pub fn consumed(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
        if self.held <= self.resume {
            self.throttled = false;
        }
    }

    /// The window to grant next, in bytes.
    pub fn window(&self) -> u32 {
        if self.throttled {
            TRICKLE_WINDOW
        } else {
            self.full_window
        }
    }

    /// Whether the connection is over its limit and has not drained to half of it since.
    pub fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Bytes that wait for their consumers.
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_shrinks_above_the_limit_and_returns_at_half_of_it() {
        let mut budget = ReceiveBudget::new(1000, 100);
        budget.received(100);
        assert_eq!(budget.window(), 1000);
        budget.received(1);
        assert_eq!(budget.window(), TRICKLE_WINDOW);
        budget.consumed(50);
        assert_eq!(budget.window(), TRICKLE_WINDOW);
        budget.consumed(1);
        assert_eq!(budget.window(), 1000);
        assert_eq!(budget.held(), 50);
    }
}
