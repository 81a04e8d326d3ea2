//! SFTP version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions, on standard input and output.
//!
//! It runs as the login user, so the kernel checks every right. File names are bytes. What the peer sends is parsed in
//! [`codec`], which knows no files; [`server`] and its neighbours know no bytes.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use crate::console;

mod attributes;
mod codec;
mod extensions;
mod handles;
mod listing;
mod paths;
mod server;
mod status;

use codec::Request;
use server::Server;

/// The longest packet, in bytes without its length field, as in OpenSSH.
const MAX_PACKET: usize = 256 << 10;

/// The most data one read or write moves, in bytes: a packet less room for its header.
const MAX_DATA: usize = 255 << 10;

/// Replies that are gathered before they are written, in bytes.
const BATCH: usize = 256 << 10;

/// Why the server stops before its input ends.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    /// The peer is no SFTP client.
    #[error("the client sent a packet of {0} bytes, which is none of SFTP: at least 1 and at most {MAX_PACKET} are")]
    PacketLength(usize),
    /// The streams.
    #[error("cannot talk to the client")]
    Io(#[from] io::Error),
}

/// Serves until standard input ends.
pub fn run() -> ExitCode {
    match serve(io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::log(&format!("sftp: {}", console::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Parses one packet, without its length field, as the server would.
#[cfg(fuzzing)]
pub fn parse_request(packet: &[u8]) {
    let _ = Request::parse(packet);
}

/// Answers requests in the order they come. Replies are written when no complete request waits, so that a pipelining
/// client gets them in few writes and a waiting one at once.
fn serve(mut input: impl Read, mut output: impl Write) -> Result<(), ServeError> {
    let mut server = Server::default();
    let mut requests = Requests::new();
    let mut replies = Vec::with_capacity(BATCH + MAX_PACKET);
    loop {
        while let Some(packet) = requests.next()? {
            let start = replies.len();
            match Request::parse(packet) {
                Ok(request) => server.answer(request, &mut replies),
                Err(malformed) => malformed.answer(&mut replies),
            }
            debug_assert!(replies.len() > start, "every request has a reply");
            if replies.len() >= BATCH {
                write_out(&mut output, &mut replies)?;
            }
        }
        write_out(&mut output, &mut replies)?;
        if !requests.fill(&mut input)? {
            return Ok(());
        }
    }
}

fn write_out(output: &mut impl Write, replies: &mut Vec<u8>) -> io::Result<()> {
    output.write_all(replies)?;
    output.flush()?;
    replies.clear();
    Ok(())
}

/// Received bytes, cut into packets.
struct Requests {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Requests {
    fn new() -> Self {
        Self {
            // Room for the longest packet and whatever of the next ones comes with it.
            buffer: vec![0; 2 * (4 + MAX_PACKET)],
            start: 0,
            end: 0,
        }
    }

    /// The next complete packet, without its length.
    fn next(&mut self) -> Result<Option<&[u8]>, ServeError> {
        let waiting = &self.buffer[self.start..self.end];
        let Some((length, rest)) = waiting.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_PACKET {
            return Err(ServeError::PacketLength(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let from = self.start + 4;
        self.start = from + length;
        Ok(Some(&self.buffer[from..self.start]))
    }

    /// Waits for more bytes. Returns false at the end of the input.
    fn fill(&mut self, input: &mut impl Read) -> io::Result<bool> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        loop {
            match input.read(&mut self.buffer[self.end..]) {
                Ok(read) => {
                    self.end += read;
                    return Ok(read > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_lying_length_ends_the_server_without_waiting_for_its_bytes() {
        for length in [0, 256 * 1024 + 1, u32::MAX] {
            let mut output = Vec::new();
            let served = serve(length.to_be_bytes().as_slice(), &mut output);
            assert!(matches!(served, Err(ServeError::PacketLength(_))), "{length}");
        }
    }

    #[test]
    fn requests_that_come_byte_by_byte_are_answered() {
        struct Drip<'a>(&'a [u8]);
        impl Read for Drip<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let Some((&first, rest)) = self.0.split_first() else {
                    return Ok(0);
                };
                self.0 = rest;
                buffer[0] = first;
                Ok(1)
            }
        }
        let init = [0, 0, 0, 5, 1, 0, 0, 0, 3];
        let realpath = [0, 0, 0, 10, 16, 0, 0, 0, 7, 0, 0, 0, 1, b'/'];
        let mut output = Vec::new();
        serve(Drip(&[init.as_slice(), &realpath].concat()), &mut output).unwrap();
        assert_eq!(output[4], 2, "the version comes first");
        assert!(
            output.windows(5).any(|window| window == [104, 0, 0, 0, 7]),
            "then the name"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_replies_or_an_error(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..80), 0..8)) {
            // Types that change files are left to the tests that have a directory for it.
            let harmless = |kind: u8| !matches!(kind, 3 | 6 | 9 | 10 | 13 | 14 | 15 | 18 | 20 | 200);
            let mut input = Vec::new();
            for packet in packets.iter().filter(|packet| harmless(packet[0])) {
                input.extend(u32::try_from(packet.len()).unwrap().to_be_bytes());
                input.extend(packet);
            }
            let _ = serve(input.as_slice(), Vec::new());
        }
    }
}
