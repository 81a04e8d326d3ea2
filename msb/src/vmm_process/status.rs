//! What a VMM process tells its starter: JSON lines on a socket. The other direction carries nothing but its end.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

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

/// The VMM process's end.
#[derive(Debug)]
pub struct StatusWriter(UnixStream);

impl StatusWriter {
    /// Writes to `socket`, and never waits for its reader.
    ///
    /// # Errors
    /// When `socket` is none.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Tells the starter, if it is still there: whether it listens is its own affair.
    pub fn send(&self, event: &StatusEvent) {
        let mut line = serde_json::to_vec(event).expect("records have string keys and no failing serializers");
        line.push(b'\n');
        if line.len() <= MAX_LINE {
            let _ = (&self.0).write_all(&line);
        }
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
        let writer = StatusWriter::new(ours).unwrap();
        let events = [ended("first"), ended("two\nlines"), ended("last")];
        events.iter().for_each(|event| writer.send(event));
        drop(writer);
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
        let writer = StatusWriter::new(ours).unwrap();
        for _ in 0..100 {
            writer.send(&ended(&"x".repeat(MAX_LINE / 2)));
        }
        drop(theirs);
        writer.send(&ended("nobody hears this"));
    }
}
