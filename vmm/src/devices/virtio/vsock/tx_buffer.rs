//! The bytes from the guest that the host end did not take yet.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::guest_buf::GuestBuf;

/// A bounded ring of bytes. It has memory only while it holds something.
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
        if self.ring.is_empty() {
            self.ring = vec![0; self.capacity].into_boxed_slice();
            self.head = 0;
        }
        let tail = (self.head + self.len) % self.capacity;
        let first = count.min(self.capacity - tail);
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
        let first = self.len.min(self.capacity - self.head);
        let parts = [
            IoSlice::new(&self.ring[self.head..self.head + first]),
            IoSlice::new(&self.ring[..self.len - first]),
        ];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags)?;
        self.head = (self.head + sent) % self.capacity;
        self.len -= sent;
        if self.is_empty() {
            self.clear();
        }
        Ok(sent)
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
