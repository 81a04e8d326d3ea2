//! Bounds what a connection holds of input that no consumer takes, and makes output wait for the client.
//!
//! Over the soft limit the window shrinks to a trickle, and the trickle of a stalled channel is paced: the session waits
//! before it answers it, but never while another channel has something to receive or to send. Over the hard limit,
//! which a trickle takes weeks to reach, the connection waits for a consumer as a whole: the bound holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use msb_protocol::receive_budget::ReceiveBudget;
use tokio::sync::Notify;

use super::WINDOW;
use super::transport::Outbound;
use crate::net::Liveness;

/// Unread input above which a connection's windows shrink, in bytes.
const SOFT_LIMIT: usize = 4 << 20;

/// Unread input that a connection never exceeds by more than a packet, in bytes.
const HARD_LIMIT: usize = 32 << 20;

/// How long a trickle waits while nothing else happens on the connection.
const PACE: Duration = Duration::from_millis(250);

/// How often a connection that waits for a consumer looks whether its client is still there.
const LIVENESS_CHECK: Duration = Duration::from_secs(1);

/// The budget of one connection.
#[derive(Debug)]
pub(super) struct Budget {
    state: Mutex<ReceiveBudget>,
    /// Input was consumed, or output is about to be sent.
    progress: Notify,
    liveness: Liveness,
    outbound: Arc<Outbound>,
}

impl Budget {
    pub(super) fn new(liveness: Liveness, outbound: Arc<Outbound>) -> Self {
        Self {
            state: Mutex::new(ReceiveBudget::new(WINDOW, SOFT_LIMIT)),
            progress: Notify::new(),
            liveness,
            outbound,
        }
    }

    /// The window to grant next, in bytes.
    pub(super) fn window(&self) -> u32 {
        self.state().window()
    }

    pub(super) fn received(&self, bytes: usize) {
        self.state().received(bytes);
    }

    pub(super) fn consumed(&self, bytes: usize) {
        self.state().consumed(bytes);
        self.progress.notify_waiters();
    }

    /// Waits until the client has read most of what was sent.
    pub(super) async fn room(&self) {
        self.outbound.room().await;
    }

    /// Ends a pause, because the session has something to send.
    pub(super) fn wake(&self) {
        self.progress.notify_waiters();
    }

    /// Delays the answer to a channel whose input waits for its consumer, if the connection is over its limits.
    pub(super) async fn pace(&self) {
        if !self.state().is_throttled() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            () = self.progress.notified() => {}
            () = self.liveness.readable() => {}
        }
        while self.state().held() > HARD_LIMIT && !self.liveness.is_gone() {
            tokio::select! {
                () = tokio::time::sleep(LIVENESS_CHECK) => {}
                () = self.progress.notified() => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, ReceiveBudget> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
