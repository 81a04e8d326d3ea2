//! The line with which a client says where it wants to go: `CONNECT <port>\n`.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;

/// The longest line, its end included: what Firecracker reads. The longest that means something has 19 bytes.
const MAX_LINE: usize = 32;

/// A client that has not finished its line.
#[derive(Debug)]
pub(super) struct Handshake {
    stream: UnixStream,
    line: [u8; MAX_LINE],
    len: usize,
}

/// Why a client is turned away.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// There is no end of line where it must be at last.
    #[error("the first line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// The line is something else.
    #[error("the first line is not `CONNECT <port>`")]
    Malformed,
    /// The client closed its end.
    #[error("the client left in the middle of the first line")]
    Eof,
    /// The socket failed.
    #[error("cannot read the first line")]
    Read(#[from] io::Error),
}

impl Handshake {
    /// A client that has just come. Its socket does not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: [0; MAX_LINE],
            len: 0,
        }
    }

    /// The client's socket.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The client's socket, with everything behind the line still in it.
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads on; returns the port once the line is complete.
    ///
    /// # Errors
    /// When the client must be turned away.
    pub(super) fn read(&mut self) -> Result<Option<u32>, HandshakeError> {
        loop {
            let room = &mut self.line[self.len..];
            if room.is_empty() {
                return Err(HandshakeError::TooLong);
            }
            // Looks first and takes no byte behind the line: that is data for the guest.
            let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
            let seen = match rustix::net::recv(self.stream.as_fd(), &mut *room, flags) {
                Ok((0, _)) => return Err(HandshakeError::Eof),
                Ok((seen, _)) => seen,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(HandshakeError::Read(error.into())),
            };
            let end = room[..seen].iter().position(|byte| *byte == b'\n');
            let take = end.map_or(seen, |end| end + 1);
            match rustix::net::recv(self.stream.as_fd(), &mut room[..take], RecvFlags::DONTWAIT) {
                Ok((taken, _)) => self.len += taken,
                Err(error) => return Err(HandshakeError::Read(error.into())),
            }
            if end.is_some() {
                return parse(&self.line[..self.len]).map(Some).ok_or(HandshakeError::Malformed);
            }
        }
    }
}

/// The port in a line. As in Firecracker, the word's case and the kind of white space do not matter.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    if !words.next()?.eq_ignore_ascii_case("CONNECT") {
        return None;
    }
    let port = words.next()?;
    // `parse` would take a sign.
    if words.next().is_some() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (Handshake, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Handshake::new(ours), theirs)
    }

    #[test]
    fn a_line_gives_its_port() {
        assert_eq!(parse(b"CONNECT 22\n"), Some(22));
        assert_eq!(parse(b"connect 4294967295\r\n"), Some(u32::MAX));
        for line in [
            "CONNECT\n",
            "CONNECT x\n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "\n",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT 1 2\n"), None);
        assert_eq!(parse(b"CONNECTS 1\n"), None);
        assert_eq!(parse(b"CONNECT \xff\n"), None);
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let (mut handshake, mut client) = pair();
        assert!(matches!(handshake.read(), Ok(None)));
        for byte in b"CONNECT 10" {
            client.write_all(&[*byte]).unwrap();
            assert!(matches!(handshake.read(), Ok(None)));
        }
        client.write_all(b"24\n").unwrap();
        assert!(matches!(handshake.read(), Ok(Some(1024))));
    }

    #[test]
    fn bytes_behind_the_line_stay_in_the_socket() {
        let (mut handshake, mut client) = pair();
        client.write_all(b"CONNECT 22\nSSH-2.0-x\r\n").unwrap();
        assert!(matches!(handshake.read(), Ok(Some(22))));
        drop(client);
        let mut rest = String::new();
        handshake.into_stream().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "SSH-2.0-x\r\n");
    }

    #[test]
    fn a_long_line_is_refused_without_reading_it_all() {
        let (mut handshake, mut client) = pair();
        client.write_all(&[b'A'; 5 * 1024]).unwrap();
        assert!(matches!(handshake.read(), Err(HandshakeError::TooLong)));
    }

    #[test]
    fn a_client_that_leaves_is_noticed() {
        let (mut handshake, mut client) = pair();
        client.write_all(b"CONNECT 2").unwrap();
        drop(client);
        assert!(matches!(handshake.read(), Err(HandshakeError::Eof)));
    }
}
