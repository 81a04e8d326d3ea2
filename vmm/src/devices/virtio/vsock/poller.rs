//! The seam between the muxer and the event loop.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use event_manager::{EventOps, EventSet, Events};

/// Whose event it is. Fits into the 32 bits that an event carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Token {
    /// The driver started or reset the device.
    Lifecycle,
    /// The driver's notification for a queue.
    Kick(u16),
    /// The listening Unix socket.
    Listener,
    /// The timer of all deadlines.
    Timer,
    /// A client in its handshake, by slot.
    Handshake(u16),
    /// A connection, by slot.
    Connection(u16),
}

impl Token {
    /// As the data of an event: the kind above 16 bits of index.
    pub(super) fn to_data(self) -> u32 {
        let (kind, index) = match self {
            Self::Lifecycle => (0, 0),
            Self::Kick(queue) => (1, queue),
            Self::Listener => (2, 0),
            Self::Timer => (3, 0),
            Self::Handshake(slot) => (4, slot),
            Self::Connection(slot) => (5, slot),
        };
        kind << 16 | u32::from(index)
    }

    /// The inverse of [`Self::to_data`].
    pub(super) fn from_data(data: u32) -> Option<Self> {
        let index = (data & 0xffff) as u16;
        Some(match data >> 16 {
            0 => Self::Lifecycle,
            1 => Self::Kick(index),
            2 => Self::Listener,
            3 => Self::Timer,
            4 => Self::Handshake(index),
            5 => Self::Connection(index),
            _ => return None,
        })
    }
}

/// What to wait for on a descriptor. A hang-up is always reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Interest {
    /// Data, or the end of it.
    pub(super) readable: bool,
    /// Room for data.
    pub(super) writable: bool,
}

impl Interest {
    /// Data, or the end of it.
    pub(super) const READABLE: Self = Self {
        readable: true,
        writable: false,
    };

    fn event_set(self) -> EventSet {
        let mut set = EventSet::empty();
        set.set(EventSet::IN, self.readable);
        set.set(EventSet::OUT, self.writable);
        set
    }
}

/// What happened on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Readiness {
    /// There is data, or its end.
    pub(super) readable: bool,
    /// There is room for data.
    pub(super) writable: bool,
    /// The other end is gone in both directions. The event loop would report this forever.
    pub(super) hung_up: bool,
}

impl Readiness {
    /// From what the event loop reports.
    pub(super) fn from_event_set(set: EventSet) -> Self {
        Self {
            readable: set.contains(EventSet::IN),
            writable: set.contains(EventSet::OUT),
            hung_up: set.intersects(EventSet::HANG_UP | EventSet::ERROR),
        }
    }
}

/// A level-triggered event loop.
///
/// After [`Poller::remove`] no event of that descriptor comes any more, not even one that is already waiting to be
/// handed out. That is why slots and descriptors can be used again at once.
pub(super) trait Poller {
    /// Watches a descriptor.
    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()>;
    /// Changes what is reported of a descriptor, and as whose.
    fn modify(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()>;
    /// Watches a descriptor no more. Must come before it is closed.
    fn remove(&mut self, fd: BorrowedFd<'_>);
}

impl Poller for EventOps<'_> {
    fn add(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        EventOps::add(self, events(fd, token, interest)).map_err(io::Error::other)
    }

    fn modify(&mut self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> io::Result<()> {
        EventOps::modify(self, events(fd, token, interest)).map_err(io::Error::other)
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) {
        let fd: RawFd = fd.as_raw_fd();
        // Fails only for a descriptor that is not watched: that is what is asked for.
        let _ = EventOps::remove(self, Events::empty_raw(fd));
    }
}

fn events(fd: BorrowedFd<'_>, token: Token, interest: Interest) -> Events {
    Events::with_data_raw(fd.as_raw_fd(), token.to_data(), interest.event_set())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_event_loop() {
        let tokens = [
            Token::Lifecycle,
            Token::Kick(2),
            Token::Listener,
            Token::Timer,
            Token::Handshake(u16::MAX),
            Token::Connection(u16::MAX),
        ];
        for token in tokens {
            assert_eq!(Token::from_data(token.to_data()), Some(token));
        }
        assert_eq!(Token::from_data(u32::MAX), None);
    }
}
