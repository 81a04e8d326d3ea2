//! Messages on blocking descriptors, one by one: what follows a message is left for whoever gets the descriptor next.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use msb_protocol::frame::{self, FrameLength, Malformed};
use msb_protocol::process::{Reply, Request};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// It cannot be read.
    #[error("cannot read a message")]
    Read(#[source] io::Error),
    /// It cannot be written.
    #[error("cannot write a message")]
    Write(#[source] io::Error),
    /// It is none.
    #[error(transparent)]
    Length(#[from] FrameLength),
    /// It is none.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Reads one request and not a byte more. Nothing at the end.
pub(super) fn receive(input: impl AsFd) -> Result<Option<Request>, StreamError> {
    match receive_frame(input)? {
        Some(frame) => Ok(Some(Request::decode(&frame)?)),
        None => Ok(None),
    }
}

/// Reads one reply and not a byte more. Nothing at the end.
pub(super) fn receive_reply(input: impl AsFd) -> Result<Option<Reply>, StreamError> {
    match receive_frame(input)? {
        Some(frame) => Ok(Some(Reply::decode(&frame)?)),
        None => Ok(None),
    }
}

fn receive_frame(input: impl AsFd) -> Result<Option<Vec<u8>>, StreamError> {
    let mut length = [0; 4];
    if !read_exact(&input, &mut length)? {
        return Ok(None);
    }
    let mut frame = vec![0; frame::check(u32::from_be_bytes(length))?];
    Ok(read_exact(&input, &mut frame)?.then_some(frame))
}

/// Fills `buffer`. Returns false at the end of the input.
fn read_exact(input: impl AsFd, buffer: &mut [u8]) -> Result<bool, StreamError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(&input, &mut buffer[filled..]) {
            Ok(0) => return Ok(false),
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(StreamError::Read(error.into())),
        }
    }
    Ok(true)
}

/// Writes one reply.
pub(super) fn send(output: impl AsFd, reply: &Reply) -> Result<(), StreamError> {
    let mut bytes = Vec::new();
    reply.encode(&mut bytes);
    write_all(output, &bytes)
}

/// Writes one request.
pub(super) fn ask(output: impl AsFd, request: &Request) -> Result<(), StreamError> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    write_all(output, &bytes)
}

fn write_all(output: impl AsFd, mut bytes: &[u8]) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        match rustix::io::write(&output, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(StreamError::Write(error.into())),
        }
    }
    Ok(())
}

/// Sends a request with the two ends of its client.
pub(super) fn hand_over(socket: &OwnedFd, request: &Request, ends: [BorrowedFd<'_>; 2]) -> Result<(), StreamError> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&ends));
    // The descriptors come with the first byte, and so short a request is not torn.
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|error| StreamError::Write(error.into()))?;
    Ok(())
}
