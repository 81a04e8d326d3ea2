//! What a VMM process tells its starter: JSON lines on a socket. The other direction carries nothing but its end.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use super::args::Lifetime;
use crate::sandbox::records::{ExitRecord, ReadyRecord};

/// The longest line either side writes or accepts, in bytes, with its newline.
const MAX_LINE: usize = 64 * 1024;

/// One line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum StatusEvent {
    /// The agent serves SSH.
    Ready(ReadyRecord),
    /// The run has ended, or never began.
    Ended(ExitRecord),
}

/// Why what came is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// A line is longer than any that a VMM process writes.
    #[error("the VMM process sent a status line of more than {MAX_LINE} bytes")]
    TooLong,
    /// A line is something else.
    #[error("the VMM process sent a malformed status line")]
    Malformed(#[source] serde_json::Error),
}

/// Whom a sandbox runs for, as its VMM process sees it.
#[derive(Debug)]
pub struct Starter {
    socket: UnixStream,
    lifetime: Lifetime,
}

impl Starter {
    /// The one at the other end of `socket`. It is never waited for.
    pub fn new(socket: UnixStream, lifetime: Lifetime) -> Self {
        Self { socket, lifetime }
    }

    /// What becomes of the sandbox when it ends.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// Tells it, if it is still there: whether it listens is its own affair.
    pub fn tell(&self, event: &StatusEvent) {
        let mut line = serde_json::to_vec(event).expect("records have string keys and no failing serializers");
        line.push(b'\n');
        if line.len() <= MAX_LINE {
            let _ = rustix::net::send(&self.socket, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        match rustix::net::recv(&self.socket, &mut [0; 64], RecvFlags::DONTWAIT) {
            Ok((read, _)) => read == 0,
            Err(errno) => !matches!(errno, Errno::AGAIN | Errno::INTR),
        }
    }
}

/// Readable at its end: nothing is written there.
impl AsFd for Starter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes the bytes that came from a VMM process apart.
#[derive(Debug, Default)]
pub struct StatusDecoder {
    pending: Vec<u8>,
}

impl StatusDecoder {
    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next event, once its line is whole.
    ///
    /// # Errors
    /// When the line is too long or something else.
    pub fn next_event(&mut self) -> Result<Option<StatusEvent>, StatusError> {
        let Some(newline) = self.pending.iter().position(|&byte| byte == b'\n') else {
            return if self.pending.len() >= MAX_LINE {
                Err(StatusError::TooLong)
            } else {
                Ok(None)
            };
        };
        let line: Vec<u8> = self.pending.drain(..=newline).collect();
        serde_json::from_slice(&line).map(Some).map_err(StatusError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::records::ExitReason;
    use std::io::Read as _;

    fn ended(message: &str) -> StatusEvent {
        StatusEvent::Ended(ExitRecord {
            run_id: "a".into(),
            ended_at: jiff::Timestamp::UNIX_EPOCH,
            reason: ExitReason::VmmError,
            message: message.into(),
        })
    }

    #[test]
    fn events_survive_any_division_of_their_lines() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let starter = Starter::new(ours, Lifetime::Detached);
        let events = [ended("first"), ended("two\nlines"), ended("last")];
        events.iter().for_each(|event| starter.tell(event));
        drop(starter);
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        for size in [1, 7, bytes.len()] {
            let mut decoder = StatusDecoder::default();
            let mut decoded = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.push(chunk);
                while let Some(event) = decoder.next_event().unwrap() {
                    decoded.push(event);
                }
            }
            assert_eq!(decoded, events, "chunks of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut decoder = StatusDecoder::default();
        decoder.push(&vec![b' '; MAX_LINE]);
        assert!(matches!(decoder.next_event(), Err(StatusError::TooLong)));
    }

    #[test]
    fn a_starter_that_is_gone_or_does_not_read_never_stops_the_writer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let starter = Starter::new(ours, Lifetime::Detached);
        for _ in 0..100 {
            starter.tell(&ended(&"x".repeat(MAX_LINE / 2)));
        }
        assert!(!starter.has_ended());
        drop(theirs);
        assert!(starter.has_ended());
        starter.tell(&ended("nobody hears this"));
    }
}
