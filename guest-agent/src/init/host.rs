//! The connection to the host on which the agent pushes its notices.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use msb_protocol::notice::{Notice, RENEW, SHUT_DOWN};
use msb_protocol::ports;
use msb_protocol::renewal::Renewal;
use vsock::VsockStream;

use super::degraded;
use crate::net::host;

/// How long the host may take for a line before PID 1 gives it up.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the host may take for a new identity. A host that is busy with many guests takes a while.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Stays open as long as the agent lives.
pub(super) struct Connection(VsockStream);

/// What the host says.
pub(super) enum Heard {
    Nothing,
    /// The guest shall shut down.
    ShutDown,
    /// The guest is another one from now on: [`Connection::renewal`].
    Renew,
    /// The connection has ended, or leads to what is not the host.
    End,
}

impl Connection {
    /// Connects and sends the first notice. A guest whose host does not listen serves all the same.
    pub(super) fn open(first: &Notice) -> Option<Self> {
        match Self::connect(first) {
            Ok(connection) => Some(connection),
            Err(error) => {
                degraded(
                    &format!("cannot tell the host on vsock port {}", ports::NOTICES),
                    &error,
                );
                None
            }
        }
    }

    /// What came from the host unasked, without waiting.
    pub(super) fn hear(&mut self) -> Heard {
        let Self(stream) = self;
        let mut byte = [0];
        let read = stream
            .set_nonblocking(true)
            .and_then(|()| stream.read(&mut byte))
            .map(|read| &byte[..read]);
        let heard = match read {
            Ok(SHUT_DOWN) => Heard::ShutDown,
            Ok(RENEW) => Heard::Renew,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Heard::Nothing
            }
            _ => Heard::End,
        };
        match stream.set_nonblocking(false) {
            Ok(()) => heard,
            Err(_) => Heard::End,
        }
    }

    /// Connects anew after the end of a connection. `None` when the host does not listen: it only gave up listening.
    pub(super) fn reopen() -> Option<Self> {
        Self::connect(&Notice::Restored).ok()
    }

    /// Receives who this guest is from now on, after [`Self::reopen`] or [`Heard::Renew`].
    pub(super) fn renewal(&mut self) -> io::Result<Renewal> {
        self.0.set_read_timeout(Some(RENEWAL_TIMEOUT))?;
        Renewal::read(&mut self.0)
    }

    fn connect(first: &Notice) -> io::Result<Self> {
        let mut stream = host::connect(ports::NOTICES)?;
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        stream.write_all(first.to_line().as_bytes())?;
        Ok(Self(stream))
    }

    /// Sends a notice; a host that is gone is no reason to stop.
    pub(super) fn send(&mut self, notice: &Notice) {
        let _ = self.0.write_all(notice.to_line().as_bytes());
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
