//! What waits for a client. It is bounded: what does not fit is counted instead, and the count is told in its place.

use std::io;
use std::os::fd::AsFd;

use msb_protocol::watch::{Change, Reply};
use rustix::io::Errno;

/// Bytes that wait at most, but for one message.
const LIMIT: usize = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// Of them, these are written.
    written: usize,
    lost: Option<Lost>,
}

/// Changes that did not fit, since the last one that did.
#[derive(Clone, Copy, Debug)]
struct Lost {
    changes: u64,
    /// The kernel lost some, too, and does not say how many.
    uncounted: bool,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a change, or counts it.
    pub(super) fn push(&mut self, change: Change) {
        if self.lost.is_none() && self.waiting() < LIMIT {
            return Reply::Change(change).encode(&mut self.bytes);
        }
        let lost = self.lost.get_or_insert(Lost {
            changes: 0,
            uncounted: false,
        });
        match change {
            Change::Lost { .. } => lost.uncounted = true,
            _ => lost.changes = lost.changes.saturating_add(1),
        }
    }

    /// Adds what must not be lost. It is the last, or the first of all.
    pub(super) fn push_last(&mut self, reply: &Reply) {
        self.tell_lost();
        reply.encode(&mut self.bytes);
    }

    /// Writes as much as `output` takes without waiting, if it does not block.
    pub(super) fn write(&mut self, output: impl AsFd) -> io::Result<()> {
        while self.written < self.bytes.len() {
            match rustix::io::write(&output, &self.bytes[self.written..]) {
                Ok(written) => self.written += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // Moving what is left is worth it once that is less than what was written.
        if self.written > self.waiting() || self.waiting() == 0 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        if self.waiting() < LIMIT / 2 {
            self.tell_lost();
        }
        Ok(())
    }

    fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    fn tell_lost(&mut self) {
        if let Some(Lost { changes, uncounted }) = self.lost.take() {
            let changes = if uncounted { 0 } else { changes };
            Reply::Change(Change::Lost { changes }).encode(&mut self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use msb_protocol::frame::Frames;
    use std::io::Read as _;

    use super::*;

    fn modified(number: u32) -> Change {
        Change::Modified {
            path: number.to_be_bytes().to_vec(),
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_told_how_much_it_lost_and_where() {
        const COUNT: u32 = 200_000;
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut outbox = Outbox::default();
        for number in 0..COUNT {
            outbox.push(modified(number));
            outbox.write(&writer).unwrap();
            assert!(outbox.bytes.len() <= 2 * LIMIT + 4096);
        }
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        outbox.write(&writer).unwrap();
        outbox.push(modified(COUNT));
        outbox.push_last(&Reply::Gone);
        while !outbox.is_empty() {
            outbox.write(&writer).unwrap();
        }
        drop(writer);

        let mut frames = Frames::default();
        frames.push(&reading.join().unwrap());
        let (mut next, mut losses) = (0, 0);
        loop {
            match Reply::decode(frames.next_frame().unwrap().unwrap()).unwrap() {
                Reply::Change(Change::Lost { changes }) => {
                    losses += 1;
                    next += u32::try_from(changes).unwrap();
                }
                Reply::Change(change) => {
                    assert_eq!(change, modified(next));
                    next += 1;
                }
                Reply::Gone => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((next, losses, frames.is_empty()), (COUNT + 1, 1, true));
    }

    #[test]
    fn what_the_kernel_lost_is_not_counted() {
        let mut outbox = Outbox::default();
        while outbox.lost.is_none() {
            outbox.push(modified(0));
        }
        outbox.push(Change::Lost { changes: 0 });
        outbox.bytes.clear();
        outbox.tell_lost();
        let told = Reply::decode(&outbox.bytes[4..]).unwrap();
        assert_eq!(told, Reply::Change(Change::Lost { changes: 0 }));
    }
}
