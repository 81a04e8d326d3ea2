//! One direction of the pump: a source, a sink, and what waits between them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{SpliceFlags, splice};

/// Bytes of the buffer, where there is one.
const BUFFER: usize = 64 * 1024;

/// The most bytes one splice may move: more than a pipe holds by default.
const SPLICE: usize = 1024 * 1024;

/// The most bytes a blocking pipe is sure to take when poll(2) calls it writable (`PIPE_BUF`, `pipe(7)`).
const PIPE_BUF: usize = 4096;

/// Operations before the other direction has its turn.
const BURST: usize = 16;

/// What a descriptor is, as far as it decides how not to block on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Pipe,
    Socket,
    Other,
}

impl Kind {
    pub(super) fn of(descriptor: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(descriptor)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo => Self::Pipe,
            FileType::Socket => Self::Socket,
            _ => Self::Other,
        })
    }
}

/// Whether a direction lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// There may be more to move.
    Open,
    /// The source ended, and the sink has everything.
    Ended,
    /// The sink takes no more.
    Refused,
}

/// What a direction must wait for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Want {
    Source,
    Sink,
    Nothing,
}

enum Step {
    Moved,
    Blocked,
    End(State),
}

enum Transfer {
    Splice,
    Buffer { bytes: Box<[u8]>, start: usize, end: usize },
}

/// One direction of the pump.
pub(super) struct Direction {
    source: Kind,
    sink: Kind,
    source_ready: bool,
    sink_ready: bool,
    transfer: Transfer,
    moved: u64,
}

impl Direction {
    pub(super) fn new(source: Kind, sink: Kind) -> Self {
        let splices = source == Kind::Pipe || sink == Kind::Pipe;
        let transfer = if splices { Transfer::Splice } else { Transfer::buffer() };
        Self {
            source,
            sink,
            source_ready: false,
            sink_ready: false,
            transfer,
            moved: 0,
        }
    }

    /// A direction that uses its buffer even where it could splice.
    #[cfg(test)]
    pub(super) fn buffered(source: Kind, sink: Kind) -> Self {
        Self {
            transfer: Transfer::buffer(),
            ..Self::new(source, sink)
        }
    }

    /// Bytes the sink took.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    pub(super) fn source_ready(&mut self) {
        self.source_ready = true;
    }

    pub(super) fn sink_ready(&mut self) {
        self.sink_ready = true;
    }

    /// What must become ready before [`Self::advance`] can move more. A splice that would block does not say on which
    /// side: the source is asked for first, then the sink, so that a ready one never wakes a poll in vain.
    pub(super) fn want(&self) -> Want {
        let (wants_source, wants_sink) = match &self.transfer {
            Transfer::Splice => (true, self.source_ready),
            Transfer::Buffer { start, end, .. } => (start == end, start != end),
        };
        if wants_source && !self.source_ready {
            Want::Source
        } else if wants_sink && !self.sink_ready {
            Want::Sink
        } else {
            Want::Nothing
        }
    }

    /// Moves bytes until that would block, or the other direction deserves its turn.
    pub(super) fn advance(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> io::Result<State> {
        for _ in 0..BURST {
            if self.want() != Want::Nothing {
                break;
            }
            match self.step(source, sink)? {
                Step::Moved => {}
                Step::Blocked => break,
                Step::End(state) => return Ok(state),
            }
        }
        Ok(State::Open)
    }

    fn step(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> io::Result<Step> {
        match &self.transfer {
            Transfer::Splice => self.splice(source, sink),
            Transfer::Buffer { start, end, .. } if start == end => self.fill(source),
            Transfer::Buffer { .. } => self.drain(sink),
        }
    }

    fn splice(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> io::Result<Step> {
        match splice(
            source,
            None,
            sink,
            None,
            SPLICE,
            SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
        ) {
            Ok(0) => Ok(Step::End(State::Ended)),
            Ok(count) => {
                self.count(count);
                Ok(Step::Moved)
            }
            Err(Errno::AGAIN) => {
                self.source_ready = false;
                self.sink_ready = false;
                Ok(Step::Blocked)
            }
            Err(Errno::INTR) => Ok(Step::Moved),
            Err(Errno::PIPE) => Ok(Step::End(State::Refused)),
            Err(Errno::CONNRESET) if self.source == Kind::Socket => Ok(Step::End(State::Ended)),
            Err(Errno::CONNRESET) => Ok(Step::End(State::Refused)),
            // This kernel, or this file, cannot splice.
            Err(Errno::INVAL | Errno::NOSYS) => {
                self.transfer = Transfer::buffer();
                Ok(Step::Moved)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn fill(&mut self, source: BorrowedFd<'_>) -> io::Result<Step> {
        let Transfer::Buffer { bytes, start, end } = &mut self.transfer else {
            return Ok(Step::Blocked);
        };
        let read = match self.source {
            Kind::Socket => rustix::net::recv(source, &mut bytes[..], RecvFlags::DONTWAIT).map(|(count, _)| count),
            Kind::Pipe | Kind::Other => {
                self.source_ready = false;
                rustix::io::read(source, &mut bytes[..])
            }
        };
        match read {
            // The other end is gone without having taken everything: what it sent has been read.
            Ok(0) | Err(Errno::CONNRESET) => Ok(Step::End(State::Ended)),
            Ok(count) => {
                (*start, *end) = (0, count);
                self.sink_ready |= self.sink == Kind::Socket;
                Ok(Step::Moved)
            }
            Err(Errno::AGAIN) => {
                self.source_ready = false;
                Ok(Step::Blocked)
            }
            Err(Errno::INTR) => Ok(Step::Moved),
            Err(errno) => Err(errno.into()),
        }
    }

    fn drain(&mut self, sink: BorrowedFd<'_>) -> io::Result<Step> {
        let Transfer::Buffer { bytes, start, end } = &mut self.transfer else {
            return Ok(Step::Blocked);
        };
        let rest = &bytes[*start..*end];
        let written = match self.sink {
            Kind::Socket => rustix::net::send(sink, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Kind::Pipe | Kind::Other => {
                self.sink_ready = false;
                rustix::io::write(sink, &rest[..rest.len().min(PIPE_BUF)])
            }
        };
        match written {
            Ok(count) => {
                *start += count;
                self.count(count);
                Ok(Step::Moved)
            }
            Err(Errno::AGAIN) => {
                self.sink_ready = false;
                Ok(Step::Blocked)
            }
            Err(Errno::INTR) => Ok(Step::Moved),
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(Step::End(State::Refused)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn count(&mut self, bytes: usize) {
        self.moved += u64::try_from(bytes).unwrap_or(u64::MAX);
    }
}

impl Transfer {
    fn buffer() -> Self {
        Self::Buffer {
            bytes: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}
