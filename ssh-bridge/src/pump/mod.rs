//! The byte pump between ssh and the guest: one thread, one poll loop, both directions.
//!
//! ssh gives its ProxyCommand pipes; data moves between them and the guest's socket with splice(2), which copies
//! nothing through this process. Everything else goes through one fixed buffer a direction.
//!
//! The descriptors of ssh are shared with it, so their `O_NONBLOCK` stays as it is. Instead each operation is one that
//! cannot block: `MSG_DONTWAIT`, `SPLICE_F_NONBLOCK`, or, after poll(2) said so, one of a size that is sure to fit. A
//! direction that waits never holds up the other.

mod direction;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use direction::{Direction, Kind, State, Want};

/// What went through a pump.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PumpStats {
    /// Bytes from the client to the guest.
    pub to_guest: u64,
    /// Bytes from the guest to the client.
    pub from_guest: u64,
}

/// Copies `input` to `stream` and `stream` to `output` until both directions ended, or nobody reads `output` any more.
///
/// The end of `input` is passed on as the end of what `stream` sends, and the end of `stream` closes `output`; the other
/// direction lives on each time. `stream` must be a socket of the caller's own: it becomes non-blocking. SIGPIPE must be
/// ignored, as it is in every Rust program that did not change it.
///
/// # Errors
/// When an operation fails in a way that is not one side ending.
pub fn run(input: OwnedFd, output: OwnedFd, stream: OwnedFd) -> io::Result<PumpStats> {
    Pump::new(input, output, stream)?.run()
}

struct Pump {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    stream: OwnedFd,
    up: Direction,
    down: Direction,
}

impl Pump {
    fn new(input: OwnedFd, output: OwnedFd, stream: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&stream)?;
        rustix::fs::fcntl_setfl(&stream, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            up: Direction::new(Kind::of(&input)?, Kind::Socket),
            down: Direction::new(Kind::Socket, Kind::of(&output)?),
            input: Some(input),
            output: Some(output),
            stream,
        })
    }

    fn run(mut self) -> io::Result<PumpStats> {
        while self.advance()? {
            self.look(self.can_go_on())?;
        }
        Ok(PumpStats {
            to_guest: self.up.moved(),
            from_guest: self.down.moved(),
        })
    }

    /// Moves what can be moved. `false` when nothing is left to do.
    fn advance(&mut self) -> io::Result<bool> {
        self.advance_up()?;
        if let Some(output) = &self.output {
            match self.down.advance(self.stream.as_fd(), output.as_fd())? {
                State::Open => {}
                State::Ended => self.end_output(),
                State::Refused => return Ok(false),
            }
        }
        Ok(self.input.is_some() || self.output.is_some())
    }

    fn advance_up(&mut self) -> io::Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        match self.up.advance(input.as_fd(), self.stream.as_fd())? {
            State::Open => {}
            State::Ended => {
                shutdown_writing(&self.stream);
                self.input = None;
            }
            State::Refused => self.input = None,
        }
        Ok(())
    }

    /// Closes `output`, for good even where `input` is the same socket.
    fn end_output(&mut self) {
        if let Some(output) = self.output.take() {
            shutdown_writing(&output);
        }
    }

    /// Waits, unless it shall only look, until a direction can go on or its client is gone. `false` when there is nothing
    /// to see.
    fn look(&mut self, only_look: bool) -> io::Result<bool> {
        let mut stream_events = PollFlags::empty();
        let mut polled = Vec::with_capacity(3);
        if let Some(input) = &self.input {
            match self.up.want() {
                Want::Source => polled.push((Polled::Input, PollFd::new(input, PollFlags::IN))),
                Want::Sink => stream_events |= PollFlags::OUT,
                Want::Nothing => {}
            }
        }
        if let Some(output) = &self.output {
            let wants = self.down.want();
            // Without events of its own it still tells that nobody reads it.
            let events = if wants == Want::Sink {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            polled.push((Polled::Output, PollFd::new(output, events)));
            if wants == Want::Source {
                stream_events |= PollFlags::IN;
            }
        }
        // With the guest's direction ended, the stream hangs up once the guest takes no more either.
        if !stream_events.is_empty() || self.output.is_none() {
            polled.push((Polled::Stream, PollFd::new(&self.stream, stream_events)));
        }

        let events = poll_all(polled, only_look)?;
        let seen = !events.is_empty();
        for (which, events) in events {
            match which {
                Polled::Input => self.up.source_ready(),
                Polled::Output if is_gone(events) => self.client_gone()?,
                Polled::Output => self.down.sink_ready(),
                Polled::Stream => self.stream_ready(events),
            }
        }
        Ok(seen)
    }

    fn can_go_on(&self) -> bool {
        (self.input.is_some() && self.up.want() == Want::Nothing)
            || (self.output.is_some() && self.down.want() == Want::Nothing)
    }

    fn stream_ready(&mut self, events: PollFlags) {
        if self.output.is_none() && is_gone(events) {
            self.input = None;
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.down.source_ready();
        }
        if events.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR) {
            self.up.sink_ready();
        }
    }

    /// Nobody reads `output`: passes on the client's last words and ends.
    fn client_gone(&mut self) -> io::Result<()> {
        if let Some(input) = &self.input
            && is_readable(input.as_fd())?
        {
            self.up.source_ready();
            self.up.sink_ready();
            self.advance_up()?;
        }
        self.input = None;
        self.output = None;
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Polled {
    Input,
    Output,
    Stream,
}

fn poll_all(polled: Vec<(Polled, PollFd<'_>)>, only_look: bool) -> io::Result<Vec<(Polled, PollFlags)>> {
    let (which, mut descriptors): (Vec<_>, Vec<_>) = polled.into_iter().unzip();
    let timeout = only_look.then_some(NO_WAIT);
    loop {
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let events = which.into_iter().zip(descriptors.iter().map(PollFd::revents));
    Ok(events.filter(|(_, events)| !events.is_empty()).collect())
}

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

fn is_readable(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll(
        &mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)],
        Some(&NO_WAIT),
    )? == 1)
}

fn is_gone(events: PollFlags) -> bool {
    events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
}

/// Ends what a socket sends. One that has ended already, or is no socket, needs it no more.
fn shutdown_writing(descriptor: &OwnedFd) {
    let _ = rustix::net::shutdown(descriptor, Shutdown::Write);
}

#[cfg(test)]
mod tests;
