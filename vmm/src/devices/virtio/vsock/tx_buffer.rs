//! The bytes from the guest that the host end did not take yet.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::guest_buf::GuestBuf;

/// The first size of the ring: one packet of a Linux guest.
const FIRST_SIZE: usize = 64 * 1024;

/// A bounded ring of bytes. It has memory only while it holds something, and about as much as it holds.
#[derive(Debug)]
pub(super) struct TxBuffer {
    ring: Box<[u8]>,
    capacity: usize,
    head: usize,
    len: usize,
}

/// The buffer has no room for that many bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl TxBuffer {
    /// An empty buffer for at most `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            ring: Box::default(),
            capacity,
            head: 0,
            len: 0,
        }
    }

    /// Bytes in the buffer.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the bytes of `from` from `offset` on.
    ///
    /// # Errors
    /// When they do not fit; nothing is appended then.
    pub(super) fn push(&mut self, from: &GuestBuf<'_>, offset: usize) -> Result<(), Full> {
        let count = from.len().saturating_sub(offset);
        if count > self.capacity - self.len {
            return Err(Full);
        }
        if count == 0 {
            return Ok(());
        }
        self.reserve(self.len + count);
        let tail = (self.head + self.len) % self.ring.len();
        let first = count.min(self.ring.len() - tail);
        from.copy_to(offset, &mut self.ring[tail..tail + first]);
        from.copy_to(offset + first, &mut self.ring[..count - first]);
        self.len += count;
        Ok(())
    }

    /// Sends what the socket takes, without blocking and without `SIGPIPE`; returns how many bytes that were.
    ///
    /// # Errors
    /// What `sendmsg(2)` says, `WouldBlock` included; the buffer is as it was then.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        let (first, second) = self.halves();
        let parts = [IoSlice::new(first), IoSlice::new(second)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags)?;
        self.head = (self.head + sent) % self.ring.len();
        self.len -= sent;
        if self.is_empty() {
            self.clear();
        }
        Ok(sent)
    }

    /// The bytes in their order.
    fn halves(&self) -> (&[u8], &[u8]) {
        let first = self.len.min(self.ring.len() - self.head);
        (&self.ring[self.head..self.head + first], &self.ring[..self.len - first])
    }

    /// Makes the ring large enough for `len` bytes, at most the capacity.
    fn reserve(&mut self, len: usize) {
        if len <= self.ring.len() {
            return;
        }
        let size = len.next_power_of_two().max(FIRST_SIZE).min(self.capacity);
        let mut ring = vec![0; size].into_boxed_slice();
        let (first, second) = self.halves();
        ring[..first.len()].copy_from_slice(first);
        ring[first.len()..self.len].copy_from_slice(second);
        self.ring = ring;
        self.head = 0;
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.ring = Box::default();
        self.head = 0;
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::super::guest_buf::tests::with_guest_buf;
    use super::*;

    fn push(buffer: &mut TxBuffer, bytes: &[u8], offset: usize) -> Result<(), Full> {
        with_guest_buf(bytes, |buf| buffer.push(&buf, offset)).0
    }

    fn flushed(buffer: &mut TxBuffer) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        buffer.flush(ours.as_fd()).unwrap();
        drop(ours);
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_leave_in_the_order_they_came_across_the_end_of_the_ring() {
        let mut buffer = TxBuffer::new(8);
        push(&mut buffer, b"abcdef", 0).unwrap();
        buffer.head = 5;
        buffer.ring.copy_from_slice(b"def..abc");

        push(&mut buffer, b"--gh", 2).unwrap();

        assert_eq!(flushed(&mut buffer), b"abcdefgh");
    }

    #[test]
    fn bytes_keep_their_order_when_the_ring_grows() {
        let mut buffer = TxBuffer::new(200_000);
        push(&mut buffer, &[2; 60_000], 0).unwrap();
        buffer.head = 10_000;
        buffer.ring.rotate_right(10_000);
        push(&mut buffer, &[3; 100_000], 0).unwrap();
        assert_eq!(buffer.ring.len(), 200_000);

        let expected = [vec![2; 60_000], vec![3; 100_000]].concat();

        assert!(flushed(&mut buffer) == expected);
    }

    #[test]
    fn what_does_not_fit_is_refused_as_a_whole() {
        let mut buffer = TxBuffer::new(8);
        push(&mut buffer, b"abcde", 0).unwrap();

        assert_eq!(push(&mut buffer, b"fghi", 0), Err(Full));

        assert_eq!(flushed(&mut buffer), b"abcde");
    }

    #[test]
    fn an_empty_buffer_has_no_memory() {
        let mut buffer = TxBuffer::new(1 << 20);
        assert_eq!(buffer.ring.len(), 0);
        push(&mut buffer, b"x", 0).unwrap();
        assert_eq!(flushed(&mut buffer), b"x");
        assert_eq!(buffer.ring.len(), 0);
    }
}
