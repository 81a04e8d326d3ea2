//! The other end of the socket: the process that serves the files.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vmm_sys_util::epoll::EventSet;

use super::message::{MAX_MESSAGE, Request, answers, failure};

/// What is under way.
#[derive(Debug)]
enum State {
    /// Nothing.
    Ready,
    /// A request that the socket has no room for.
    Sending(Request),
    /// The answer to the request with this number.
    Waiting([u8; 8]),
    /// The other end is gone, or broke the protocol.
    Gone,
}

#[derive(Debug)]
pub(super) struct Peer {
    /// For the log.
    tag: String,
    socket: Arc<OwnedFd>,
    state: State,
    buffer: Box<[u8]>,
}

impl AsRawFd for Peer {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Peer {
    /// What is reached by `socket`.
    ///
    /// # Errors
    /// When the socket cannot be told not to block.
    pub(super) fn new(tag: &str, socket: &Arc<OwnedFd>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&**socket, true)?;
        // A host that allows no messages of that size lets requests of smaller ones pass.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&**socket, 2 * MAX_MESSAGE);
        Ok(Self {
            tag: tag.to_owned(),
            socket: Arc::clone(socket),
            state: State::Ready,
            buffer: vec![0; MAX_MESSAGE].into(),
        })
    }

    /// Registers with the device's event loop.
    pub(super) fn register(&self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self, EventSet::IN)) {
            tracing::warn!(%error, tag = self.tag, "a file system cannot be watched and does not answer");
        }
    }

    /// Whether it takes a request now.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready | State::Gone)
    }

    /// Sends a request; returns the answer if there will be no other.
    pub(super) fn ask(&mut self, request: Request, ops: &mut EventOps) -> Option<Vec<u8>> {
        if matches!(self.state, State::Gone) {
            return Some(failure(request.unique()));
        }
        match send(self.socket.as_fd(), request.bytes(), SendFlags::NOSIGNAL) {
            Ok(sent) if sent == request.bytes().len() => {
                self.state = match request.is_answered() {
                    true => State::Waiting(request.unique()),
                    false => State::Ready,
                };
                None
            }
            Err(Errno::AGAIN) => {
                self.watch(EventSet::IN | EventSet::OUT, ops);
                self.state = State::Sending(request);
                None
            }
            // A message of another size may pass.
            Err(Errno::MSGSIZE | Errno::NOBUFS) => Some(failure(request.unique())),
            Ok(_) => self.lose("it takes a part of a message", request.unique(), ops),
            Err(error) => self.lose(&io::Error::from(error).to_string(), request.unique(), ops),
        }
    }

    /// Goes on where the socket is ready; returns the answer that came.
    pub(super) fn hear(&mut self, ops: &mut EventOps) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Gone => {
                self.state = State::Gone;
                None
            }
            State::Sending(request) => {
                // Whose requests have no answers has nothing to say. Unread it would wake the event loop for ever.
                let failure = self.receive(request.unique(), false, ops);
                if failure.is_some() {
                    return failure;
                }
                self.watch(EventSet::IN, ops);
                self.ask(request, ops)
            }
            State::Ready => self.receive([0; 8], false, ops),
            State::Waiting(unique) => self.receive(unique, true, ops),
        }
    }

    fn receive(&mut self, unique: [u8; 8], is_awaited: bool, ops: &mut EventOps) -> Option<Vec<u8>> {
        let received = recv(self.socket.as_fd(), &mut *self.buffer, RecvFlags::TRUNC);
        match received {
            Err(Errno::AGAIN | Errno::INTR) => {
                if is_awaited {
                    self.state = State::Waiting(unique);
                }
                None
            }
            Ok((length, sent)) if is_awaited && length == sent && answers(&self.buffer[..length], unique) => {
                Some(self.buffer[..length].to_owned())
            }
            Ok((0, _)) | Err(Errno::CONNRESET) => self.lose("it has ended", unique, ops),
            Ok(_) => self.lose("what it says is no answer", unique, ops),
            Err(error) => self.lose(&io::Error::from(error).to_string(), unique, ops),
        }
    }

    /// From now on there are no files; returns what to answer a request that is under way.
    fn lose(&mut self, why: &str, unique: [u8; 8], ops: &mut EventOps) -> Option<Vec<u8>> {
        self.state = State::Gone;
        let _ = ops.remove(Events::empty(self));
        tracing::warn!(
            tag = self.tag,
            why,
            "the server of a volume is gone; the guest gets errors"
        );
        Some(failure(unique))
    }

    fn watch(&self, events: EventSet, ops: &mut EventOps) {
        if let Err(error) = ops.modify(Events::new(self, events)) {
            tracing::warn!(%error, tag = self.tag, "a file system cannot be watched and does not answer");
        }
    }
}
