//! A client of a keeper: what it asked for and has not got yet.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use msb_protocol::frame::{FrameLength, Frames, Malformed};
use msb_protocol::process::{Failure, INPUT_WINDOW, MAX_DATA, Reply, Request};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::history::History;

/// Unsent bytes from which on a client gets no more output, in bytes.
const BATCH: usize = 64 << 10;

/// Unsent bytes from which on a client's requests wait, in bytes.
const BACKLOG: usize = 256 << 10;

/// The client is gone, or breaks the rules.
#[derive(Debug)]
pub(super) struct Gone;

/// A client says what is none of the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error(transparent)]
    Length(#[from] FrameLength),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{0} cannot be asked for here")]
    OutOfPlace(&'static str),
    #[error("more input came than was granted")]
    Window,
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    input: Option<OwnedFd>,
    output: OwnedFd,
    /// Whether descriptors may come with its bytes: it came by the socket.
    is_socket: bool,
    received: Frames,
    /// Its own two ends, which a process server passed.
    passed: Vec<OwnedFd>,
    unsent: Vec<u8>,
    sent: usize,
    view: Option<View>,
    /// Whether it started the process.
    pub(super) is_starter: bool,
    /// Input that it may still send, in bytes.
    window: u32,
    /// Input that was taken and not granted again, in bytes.
    taken: u32,
    /// It gets what is unsent and is left then.
    is_leaving: bool,
    told_end: bool,
}

/// What a client sees of the output.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) position: u64,
    pub(super) credit: u64,
    pub(super) hold: bool,
}

impl Client {
    /// One that has an end for each direction.
    ///
    /// # Errors
    /// When these cannot be polled.
    pub(super) fn new(input: OwnedFd, output: OwnedFd) -> rustix::io::Result<Self> {
        for end in [&input, &output] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok(Self {
            input: Some(input),
            output,
            is_socket: false,
            received: Frames::default(),
            passed: Vec::new(),
            unsent: Vec::new(),
            sent: 0,
            view: None,
            is_starter: false,
            window: INPUT_WINDOW,
            taken: 0,
            is_leaving: false,
            told_end: false,
        })
    }

    /// One that came by the socket.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub(super) fn from_socket(socket: OwnedFd) -> rustix::io::Result<Self> {
        let output = rustix::io::fcntl_dupfd_cloexec(&socket, 3)?;
        Ok(Self {
            is_socket: true,
            ..Self::new(socket, output)?
        })
    }

    /// Where requests come from, while more are taken.
    pub(super) fn readable(&self) -> Option<BorrowedFd<'_>> {
        let takes = !self.is_leaving && self.unsent.len() - self.sent < BACKLOG;
        self.input.as_ref().filter(|_| takes).map(AsFd::as_fd)
    }

    /// Where replies go, and for what to wait there: for room, or without anything to send, only for the client's end. That
    /// of one that has asked for nothing yet is none: it may have passed its ends and left.
    pub(super) fn writable(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if self.sent < self.unsent.len() {
            Some((self.output.as_fd(), PollFlags::OUT))
        } else {
            self.view.map(|_| (self.output.as_fd(), PollFlags::empty()))
        }
    }

    /// Undoes [`Self::new`]. Returns where the client is told things.
    pub(super) fn into_blocking(self) -> OwnedFd {
        // What cannot be made blocking is written to as it is.
        let _ = rustix::io::ioctl_fionbio(&self.output, false);
        self.output
    }

    /// Reads what there is, at most a whole `buffer`. The end of its requests is not the end of a client that has ends of
    /// its own.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Result<(), Gone> {
        let Some(input) = &self.input else { return Ok(()) };
        let received = if self.is_socket {
            receive_with_descriptors(input, buffer, &mut self.passed)
        } else {
            rustix::io::read(input, &mut *buffer)
        };
        match received {
            Ok(0) if self.view.is_none() => Err(Gone),
            Ok(0) => {
                self.input = None;
                Ok(())
            }
            Ok(length) => {
                self.received.push(&buffer[..length]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// The next request that came.
    pub(super) fn request(&mut self) -> Result<Option<Request>, ProtocolError> {
        if self.is_leaving {
            return Ok(None);
        }
        match self.received.next_frame()? {
            Some(frame) => Ok(Some(Request::decode(frame)?)),
            None => Ok(None),
        }
    }

    /// Moves to the ends that were passed, if they were.
    pub(super) fn take_passed(&mut self) -> rustix::io::Result<()> {
        if let Ok([input, output]) = <[OwnedFd; 2]>::try_from(std::mem::take(&mut self.passed)) {
            *self = Self::new(input, output)?;
        }
        Ok(())
    }

    pub(super) fn view(&self) -> Option<View> {
        self.view
    }

    pub(super) fn set_view(&mut self, view: View) {
        self.view = Some(view);
    }

    pub(super) fn add_credit(&mut self, bytes: u32) {
        if let Some(view) = &mut self.view {
            view.credit = view.credit.saturating_add(bytes.into());
        }
    }

    pub(super) fn reply(&mut self, reply: &Reply) {
        reply.encode(&mut self.unsent);
    }

    pub(super) fn refuse(&mut self, failure: Failure, message: impl Into<String>) {
        self.reply(&Reply::Failed {
            failure,
            message: message.into(),
        });
    }

    /// Gives the client what is unsent, and nothing more.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// Counts input that came.
    pub(super) fn spend_window(&mut self, bytes: usize) -> Result<(), ProtocolError> {
        let left = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.window.checked_sub(bytes));
        self.window = left.ok_or(ProtocolError::Window)?;
        Ok(())
    }

    /// Counts input that the process took, and grants as much again: at once when that was all, else in larger steps.
    pub(super) fn return_window(&mut self, bytes: usize) {
        self.taken += u32::try_from(bytes).unwrap_or(u32::MAX);
        let is_all = self.window + self.taken == INPUT_WINDOW;
        if is_all || self.taken >= INPUT_WINDOW / 2 {
            let taken = std::mem::take(&mut self.taken);
            self.window += taken;
            self.reply(&Reply::Credit(taken));
        }
    }

    /// Gives the client all it has credit and room for, and the news of the end. Returns whether it has all it is ever to
    /// get.
    pub(super) fn serve(&mut self, history: &History, end: Option<&Reply>) -> Result<bool, Gone> {
        loop {
            self.take_output(history, end);
            let had = self.unsent.len();
            let has_all = self.flush()?;
            // With room left there may be more to take.
            if has_all || had == 0 || !self.unsent.is_empty() {
                return Ok(has_all);
            }
        }
    }

    fn take_output(&mut self, history: &History, end: Option<&Reply>) {
        let Some(mut view) = self.view.filter(|_| !self.is_leaving) else {
            return;
        };
        if view.position < history.start() {
            let lost = history.start() - view.position;
            self.reply(&Reply::Lost(lost));
            view.position = history.start();
        }
        while view.credit > 0 && self.unsent.len() - self.sent < BATCH {
            let Some((is_error, bytes)) = history.at(view.position) else {
                break;
            };
            let credit = usize::try_from(view.credit).unwrap_or(usize::MAX);
            let length = bytes.len().min(credit).min(MAX_DATA);
            Reply::encode_output(&mut self.unsent, is_error, &bytes[..length]);
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            view.position += length;
            view.credit -= length;
        }
        self.view = Some(view);
        if let Some(end) = end.filter(|_| view.position == history.end() && !self.told_end) {
            self.reply(end);
            self.told_end = true;
        }
        // One that says nothing any more is not waited for.
        if self.told_end && self.input.is_none() {
            self.leave();
        }
    }

    /// Writes what there is room for. Returns whether the client has all it is ever to get.
    fn flush(&mut self) -> Result<bool, Gone> {
        while self.sent < self.unsent.len() {
            match rustix::io::write(&self.output, &self.unsent[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        if self.sent == self.unsent.len() || self.sent >= BACKLOG {
            self.unsent.drain(..self.sent);
            self.sent = 0;
        }
        Ok(self.unsent.is_empty() && self.is_leaving)
    }
}

fn receive_with_descriptors(
    socket: &OwnedFd,
    buffer: &mut [u8],
    passed: &mut Vec<OwnedFd>,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
            // A process server passes two, once.
            passed.truncate(2);
        }
    }
    Ok(received.bytes)
}
