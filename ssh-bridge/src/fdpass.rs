//! Hands the stream itself to ssh, for `ProxyUseFdpass yes`: no process copies bytes for the rest of the session.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::fd_passing;

/// Why the stream could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum FdpassError {
    /// The descriptor is not a Unix socket.
    #[error("standard output is no Unix socket: `--fdpass` is for ssh's `ProxyUseFdpass yes` only")]
    NotASocket,
    /// The receiver is gone, or the system refused.
    #[error("cannot hand the connection to ssh")]
    Send(#[source] io::Error),
}

/// Sends `stream` over standard output, which ssh made a Unix socket. The caller's copy is then no longer needed.
///
/// # Errors
/// When standard output is no Unix socket or its other end is gone.
pub fn send_stdout(stream: impl AsFd) -> Result<(), FdpassError> {
    send(io::stdout().as_fd(), stream.as_fd())
}

/// Sends `stream` over `socket`: one byte with the descriptor, as OpenSSH's `mm_receive_fd` expects it.
///
/// # Errors
/// When `socket` is no Unix socket or its other end is gone.
pub fn send(socket: BorrowedFd<'_>, stream: BorrowedFd<'_>) -> Result<(), FdpassError> {
    let sent = fd_passing::send(socket, &[0], &[stream]);
    sent.map(drop).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::INVAL) => FdpassError::NotASocket,
        _ => FdpassError::Send(error),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_receiver_gets_one_byte_and_a_working_stream() {
        let (ours, ssh) = UnixStream::pair().unwrap();
        let (bridge, mut guest) = UnixStream::pair().unwrap();
        send(ours.as_fd(), bridge.as_fd()).unwrap();
        drop((ours, bridge));

        let (bytes, mut descriptors) = fd_passing::receive(&ssh, &mut [0; 16]).unwrap();
        assert_eq!((bytes, descriptors.len()), (1, 1));
        let mut stream = UnixStream::from(descriptors.remove(0));
        stream.write_all(b"to the guest").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = String::new();
        guest.read_to_string(&mut received).unwrap();
        assert_eq!(received, "to the guest");
        assert_eq!((&ssh).read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_pipe_and_a_closed_socket_are_told_apart() {
        let (stream, _guest) = UnixStream::pair().unwrap();
        let (_reader, writer) = io::pipe().unwrap();
        assert!(matches!(
            send(writer.as_fd(), stream.as_fd()),
            Err(FdpassError::NotASocket)
        ));
        let (ours, ssh) = UnixStream::pair().unwrap();
        drop(ssh);
        assert!(matches!(send(ours.as_fd(), stream.as_fd()), Err(FdpassError::Send(_))));
    }
}
