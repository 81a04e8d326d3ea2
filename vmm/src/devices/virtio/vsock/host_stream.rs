//! The host end of a connection: a Unix stream socket, and what the guest sent that it did not take yet.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendFlags};

use super::guest_buf::GuestBuf;
use super::tx_buffer::{Full, TxBuffer};

/// A non-blocking stream with a bounded buffer in front of it.
#[derive(Debug)]
pub(super) struct HostStream {
    stream: UnixStream,
    buffer: TxBuffer,
    /// The host end takes nothing more.
    broken: bool,
    write_shut: bool,
}

/// What came of reading from the host end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// That many bytes.
    Data(usize),
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    Eof,
}

impl HostStream {
    /// Takes a socket that does not block.
    pub(super) fn new(stream: UnixStream, capacity: usize) -> Self {
        Self {
            stream,
            buffer: TxBuffer::new(capacity),
            broken: false,
            write_shut: false,
        }
    }

    /// Whether the host end takes nothing more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether everything was written and the host end has seen the end of it.
    pub(super) fn is_write_shut(&self) -> bool {
        self.write_shut
    }

    /// Bytes that wait for the host end.
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Passes the guest's bytes on: straight from its memory, and what the socket refuses into the buffer.
    ///
    /// Returns how many bytes of the guest's credit are free again: those the socket took, or all when the host end
    /// takes nothing more.
    ///
    /// # Errors
    /// When the buffer cannot hold the rest: the guest overran its credit.
    pub(super) fn write(&mut self, payload: &mut GuestBuf<'_>) -> Result<usize, Full> {
        if self.broken {
            return Ok(payload.len());
        }
        let mut sent = 0;
        if self.buffer.is_empty() && payload.len() > 0 {
            sent = match retry(|| payload.send(self.stream.as_fd())) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.break_off();
                    return Ok(payload.len());
                }
            };
        }
        self.buffer.push(payload, sent)?;
        Ok(sent)
    }

    /// Writes what waits; returns how many bytes of the guest's credit that frees.
    pub(super) fn flush(&mut self) -> usize {
        match retry(|| self.buffer.flush(self.stream.as_fd())) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => self.break_off(),
        }
    }

    /// The host end takes nothing more: drops what waits for it and returns how many bytes that were.
    pub(super) fn break_off(&mut self) -> usize {
        let dropped = self.buffer.len();
        self.buffer.clear();
        self.broken = true;
        dropped
    }

    /// Reads at most `limit` bytes straight into the guest's memory. An error of the socket is its end.
    pub(super) fn read(&self, payload: &mut GuestBuf<'_>, limit: usize) -> Received {
        match retry(|| payload.recv(self.stream.as_fd(), limit)) {
            Ok(0) => Received::Eof,
            Ok(n) => Received::Data(n),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Received::Nothing,
            Err(_) => Received::Eof,
        }
    }

    /// Tells the host end that everything was written.
    pub(super) fn shut_write(&mut self) {
        self.write_shut = true;
        // Fails only for a socket whose other end is gone.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Tells the host end that nothing it writes will be read.
    pub(super) fn shut_read(&self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Sends the line that ends a client's handshake.
    ///
    /// # Errors
    /// When the client is gone. The socket of a living one has room, for nothing was written to it before.
    pub(super) fn send_line(&self, line: &str) -> io::Result<()> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::send(self.stream.as_fd(), line.as_bytes(), flags)?;
        if sent < line.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        end(&self.stream);
    }
}

/// Ends a stream so that the other end sees an end of file: closing a Unix socket with unread bytes would give it
/// `ECONNRESET`. No more is read than a socket buffer holds.
pub(super) fn end(stream: &UnixStream) {
    let _ = stream.shutdown(Shutdown::Both);
    let mut scratch = [0; 4096];
    for _ in 0..128 {
        match rustix::net::recv(stream.as_fd(), &mut scratch, RecvFlags::DONTWAIT) {
            Ok((n, _)) if n > 0 => {}
            _ => break,
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
