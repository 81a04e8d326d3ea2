//! Input that the process has not read yet, of all its clients in the order it came.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// The queue before the process's standard input. Bounded by the windows of the clients.
#[derive(Debug)]
pub(super) struct Input {
    descriptor: Option<OwnedFd>,
    is_terminal: bool,
    queue: VecDeque<Piece>,
    /// The queue's end is the end of the input.
    is_ended: bool,
}

#[derive(Debug)]
struct Piece {
    client: u64,
    bytes: Vec<u8>,
    written: usize,
}

impl Input {
    pub(super) fn new(descriptor: Option<OwnedFd>, is_terminal: bool) -> Self {
        Self {
            descriptor,
            is_terminal,
            queue: VecDeque::new(),
            is_ended: false,
        }
    }

    /// Whether it may still be sent something.
    pub(super) fn is_open(&self) -> bool {
        self.descriptor.is_some() && !self.is_ended
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Where the queue is written, while there is one.
    pub(super) fn writable(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor
            .as_ref()
            .filter(|_| !self.queue.is_empty())
            .map(AsFd::as_fd)
    }

    pub(super) fn push(&mut self, client: u64, bytes: Vec<u8>) {
        // Nothing takes nothing of the window, which is what bounds the queue.
        if bytes.is_empty() {
            return;
        }
        self.queue.push_back(Piece {
            client,
            bytes,
            written: 0,
        });
    }

    /// Ends the input after the queue.
    pub(super) fn end(&mut self) {
        self.is_ended = true;
        self.close_if_done();
    }

    /// Writes what there is room for. Returns how much of whose input is gone from the queue.
    pub(super) fn write(&mut self) -> Vec<(u64, usize)> {
        let mut gone = Vec::new();
        while let (Some(descriptor), Some(piece)) = (&self.descriptor, self.queue.front_mut()) {
            match rustix::io::write(descriptor, &piece.bytes[piece.written..]) {
                Ok(length) => {
                    piece.written += length;
                    gone.push((piece.client, length));
                    if piece.written == piece.bytes.len() {
                        self.queue.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // Nobody reads it any more.
                Err(_) => {
                    self.descriptor = None;
                    gone.extend(self.drop_queue());
                }
            }
        }
        self.close_if_done();
        gone
    }

    /// Drops the queue. Returns how much of whose input that was.
    pub(super) fn drop_queue(&mut self) -> Vec<(u64, usize)> {
        let pieces = self.queue.drain(..);
        pieces
            .map(|piece| (piece.client, piece.bytes.len() - piece.written))
            .collect()
    }

    fn close_if_done(&mut self) {
        if self.is_ended && self.queue.is_empty() {
            self.descriptor = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_sends_nothing_without_end_takes_no_memory() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let mut input = Input::new(Some(writer.into()), false);
        (0..10).for_each(|_| input.push(1, Vec::new()));
        assert!(input.queue.is_empty());
        input.push(1, b"x".to_vec());
        assert_eq!(input.write(), [(1, 1)]);
    }
}
