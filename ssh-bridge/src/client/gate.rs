//! Bounds what a connection holds of received data.
//!
//! russh's client grants a channel its full window whenever data arrives; unlike on the server, what its handler returns
//! from `adjust_window` is not used. So the bound is one layer below: while sessions hold more than the limit, nothing
//! more is read from the transport. Then all channels wait, and as the guest's end does not read either while it cannot
//! write, so does what is sent to it: the limit is for readers that fell far behind, not for pacing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use msb_protocol::receive_budget::ReceiveBudget;

/// Counts received data, and stops the reading of more.
#[derive(Debug)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug)]
struct State {
    budget: ReceiveBudget,
    reader: Option<Waker>,
}

impl Gate {
    pub(super) fn new(window: u32, limit: usize) -> Self {
        Self(Mutex::new(State {
            budget: ReceiveBudget::new(window, limit),
            reader: None,
        }))
    }

    pub(super) fn received(&self, bytes: usize) {
        self.state().budget.received(bytes);
    }

    pub(super) fn consumed(&self, bytes: usize) {
        let mut state = self.state();
        state.budget.consumed(bytes);
        if !state.budget.is_throttled()
            && let Some(reader) = state.reader.take()
        {
            drop(state);
            reader.wake();
        }
    }

    /// Whether more may be read. If not, `context` is woken when that changes.
    pub(super) fn poll_open(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.budget.is_throttled() {
            return Poll::Ready(());
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counters stay true whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
