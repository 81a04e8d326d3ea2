//! Who may send to the guest next.

use std::collections::VecDeque;

use super::connection::Key;
use super::header::{HOST_CID, TYPE_STREAM};

/// A refusal to something that is no connection (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reset {
    /// The context ID that the guest spoke to.
    pub(super) src_cid: u64,
    /// The port that the guest spoke to.
    pub(super) src_port: u32,
    /// The guest's port.
    pub(super) dst_port: u32,
    /// The packet type that the guest used.
    pub(super) kind: u16,
}

impl Reset {
    /// For a connection.
    pub(super) fn of(key: Key) -> Self {
        Self {
            src_cid: HOST_CID,
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind: TYPE_STREAM,
        }
    }
}

/// Resets first, because they exist nowhere else; then connections in turn, each at most once in the queue.
#[derive(Debug)]
pub(super) struct RxQueue {
    resets: VecDeque<Reset>,
    connections: VecDeque<u16>,
    queued: Vec<bool>,
    reset_limit: usize,
}

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A reset.
    Reset(Reset),
    /// Something of the connection in this slot.
    Connection(u16),
}

/// Resets that the guest can cause with its packets before it must take some.
const SOFT_RESET_LIMIT: usize = 256;

impl RxQueue {
    /// An empty queue for `max_connections` slots.
    pub(super) fn new(max_connections: u16) -> Self {
        Self {
            resets: VecDeque::new(),
            connections: VecDeque::new(),
            queued: vec![false; usize::from(max_connections)],
            reset_limit: SOFT_RESET_LIMIT + usize::from(max_connections),
        }
    }

    /// Whether there is room for the reset that a guest's packet may cause.
    pub(super) fn can_answer(&self) -> bool {
        self.resets.len() < SOFT_RESET_LIMIT
    }

    /// Queues a reset. Beyond the room for guest packets and one reset for each connection, it is dropped: the guest
    /// that takes none of its packets will time out by itself.
    pub(super) fn push_reset(&mut self, reset: Reset) {
        if self.resets.len() < self.reset_limit {
            self.resets.push_back(reset);
        }
    }

    /// Queues a connection that has something to send.
    pub(super) fn push_connection(&mut self, slot: u16) {
        if let Some(queued) = self.queued.get_mut(usize::from(slot))
            && !std::mem::replace(queued, true)
        {
            self.connections.push_back(slot);
        }
    }

    /// Takes the next in turn.
    pub(super) fn pop(&mut self) -> Option<Next> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(Next::Reset(reset));
        }
        let slot = self.connections.pop_front()?;
        if let Some(queued) = self.queued.get_mut(usize::from(slot)) {
            *queued = false;
        }
        Some(Next::Connection(slot))
    }

    /// Whether nobody is in the queue.
    pub(super) fn is_empty(&self) -> bool {
        self.resets.is_empty() && self.connections.is_empty()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.resets.clear();
        self.connections.clear();
        self.queued.fill(false);
    }

    /// Resets and connections in the queue.
    #[cfg(test)]
    pub(super) fn lens(&self) -> (usize, usize) {
        (self.resets.len(), self.connections.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(port: u32) -> Reset {
        Reset {
            src_cid: 2,
            src_port: port,
            dst_port: 1,
            kind: 1,
        }
    }

    #[test]
    fn connections_take_turns_behind_resets() {
        let mut queue = RxQueue::new(4);
        queue.push_connection(2);
        queue.push_connection(0);
        queue.push_connection(2);
        queue.push_reset(reset(7));

        assert_eq!(queue.pop(), Some(Next::Reset(reset(7))));
        assert_eq!(queue.pop(), Some(Next::Connection(2)));
        queue.push_connection(2);
        assert_eq!(queue.pop(), Some(Next::Connection(0)));
        assert_eq!(queue.pop(), Some(Next::Connection(2)));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn resets_are_bounded() {
        let mut queue = RxQueue::new(4);
        for port in 0..1000 {
            assert_eq!(queue.can_answer(), port < 256);
            queue.push_reset(reset(port));
        }
        assert_eq!(queue.lens(), (260, 0));
    }
}
