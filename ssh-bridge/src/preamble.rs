//! Tells the guest's agent how to serve the connection that follows on a stream.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use msb_protocol::frame::{self, FrameLength, MAX_FRAME};
use msb_protocol::server_preamble::{Answer, MAX_ANSWER, NAMESPACE, Preamble};
pub use msb_protocol::server_preamble::{MAX_AUTHORIZED_KEYS, Refusal, ServerOptions};
use russh::keys::HashAlg;
use russh::keys::ssh_key::{self, LineEnding};
use zeroize::Zeroizing;

use crate::keys::KeyPair;

/// Why the guest's agent does not serve a connection as it should.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// The host key cannot sign.
    #[error("cannot sign the options of the connection with the sandbox's host key")]
    Sign(#[source] ssh_key::Error),
    /// More than the agent reads.
    #[error("the options of the connection are longer than {MAX_FRAME} bytes")]
    TooLong,
    /// The agent says why.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The agent says nothing.
    #[error("the guest did not say within {} s whether it serves the connection; see `msb logs` for what it is doing", .0.as_secs_f32())]
    Deadline(Duration),
    /// The stream to the guest.
    #[error("cannot tell the guest how to serve the connection; `msb logs` shows what the guest says")]
    Stream(#[source] io::Error),
    /// The answer is longer than any.
    #[error("the guest does not say whether it serves the connection")]
    AnswerLength(#[source] FrameLength),
    /// The answer is none.
    #[error("the guest does not say whether it serves the connection")]
    Answer(#[source] frame::Malformed),
}

/// What [`send`] sends: `options`, signed with the host key of the sandbox. Good for any number of connections; it holds
/// a secret when the options do.
///
/// # Errors
/// When the key cannot sign, or the options are too long.
pub fn sign(options: &ServerOptions, host_key: &KeyPair) -> Result<Zeroizing<Vec<u8>>, PreambleError> {
    let options = options.to_message();
    let signature = host_key
        .private_key()
        .sign(NAMESPACE, HashAlg::Sha512, &options)
        .and_then(|signature| signature.to_pem(LineEnding::LF))
        .map_err(PreambleError::Sign)?;
    let framed = Preamble { signature, options }.to_frame();
    if framed.len() > MAX_FRAME {
        return Err(PreambleError::TooLong);
    }
    Ok(framed)
}

/// Sends `preamble` to the agent on a blocking stream, and waits until it agrees. SSH comes next in the stream.
///
/// # Errors
/// When the agent refuses it, the stream ends, or `deadline` passes first.
pub fn send(stream: &UnixStream, preamble: &[u8], deadline: Duration) -> Result<(), PreambleError> {
    let exchange = Exchange {
        stream,
        until: Instant::now() + deadline,
    };
    let answered = exchange.run(preamble).map_err(|error| match error {
        PreambleError::Stream(error) if is_timeout(&error) => PreambleError::Deadline(deadline),
        other => other,
    })?;
    match answered {
        Answer::Accepted => Ok(()),
        Answer::Refused(refusal) => Err(refusal.into()),
    }
}

struct Exchange<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Exchange<'_> {
    fn run(&self, preamble: &[u8]) -> Result<Answer, PreambleError> {
        // An agent that refuses early takes no more, and its answer is there.
        let sent = self.write(preamble);
        let answer = self.read_answer();
        if let (Err(error), Err(_)) = (sent, &answer) {
            return Err(PreambleError::Stream(error));
        }
        let unlimited = self.stream.set_write_timeout(None);
        unlimited
            .and_then(|()| self.stream.set_read_timeout(None))
            .map_err(PreambleError::Stream)?;
        answer
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream;
        while !bytes.is_empty() {
            stream.set_write_timeout(Some(self.remaining()?))?;
            match stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One frame, and not a byte beyond it: what follows is SSH's.
    fn read_answer(&self) -> Result<Answer, PreambleError> {
        let mut length = [0; 4];
        self.read(&mut length).map_err(PreambleError::Stream)?;
        let length = u32::from_be_bytes(length);
        let size = frame::check(length).ok().filter(|size| *size <= MAX_ANSWER);
        let size = size.ok_or(PreambleError::AnswerLength(FrameLength(length)))?;
        let mut answer = [0; MAX_ANSWER];
        self.read(&mut answer[..size]).map_err(PreambleError::Stream)?;
        Answer::from_frame(&answer[..size]).map_err(PreambleError::Answer)
    }

    fn read(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        let mut stream = self.stream;
        while !buffer.is_empty() {
            stream.set_read_timeout(Some(self.remaining()?))?;
            match stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => buffer = &mut buffer[read..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn remaining(&self) -> io::Result<Duration> {
        let remaining = self.until.saturating_duration_since(Instant::now());
        (!remaining.is_zero())
            .then_some(remaining)
            .ok_or(io::ErrorKind::TimedOut.into())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use russh::keys::ssh_key::SshSig;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// What [`send`] makes of an agent that behaves like this.
    fn against(agent: impl FnOnce(UnixStream) + Send + 'static) -> (UnixStream, Result<(), PreambleError>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || agent(theirs));
        let result = send(&ours, b"preamble", LONG);
        agent.join().unwrap();
        (ours, result)
    }

    #[test]
    fn what_follows_the_answer_stays_in_the_stream() {
        let (mut stream, result) = against(|mut agent| {
            let mut received = [0; 8];
            agent.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"preamble");
            let bytes = [Answer::Accepted.to_frame(), b"SSH-2.0-guest\r\n".to_vec()].concat();
            agent.write_all(&bytes).unwrap();
        });
        result.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "SSH-2.0-guest\r\n");
    }

    #[test]
    fn a_refusal_is_told_though_nothing_was_taken() {
        let (_, result) = against(|mut agent| {
            let answer = Answer::Refused(Refusal::User).to_frame();
            agent.write_all(&answer).unwrap();
        });
        assert!(
            matches!(result, Err(PreambleError::Refused(Refusal::User))),
            "{result:?}"
        );
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for bytes in [
            &b""[..],
            &[0, 0],
            &[0, 0, 0, 1, 9],
            b"SSH-2.0-guest\r\n",
            &[0, 0, 0, 2, 2, 99],
        ] {
            let (_, result) = against(move |mut agent| {
                // Read first: bytes left unread would reset the stream.
                agent.read_exact(&mut [0; 8]).unwrap();
                agent.write_all(bytes).unwrap();
            });
            let error = result.unwrap_err();
            assert!(
                !matches!(error, PreambleError::Refused(_) | PreambleError::Deadline(_)),
                "{error}"
            );
        }
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        for preamble in [vec![0; 8], vec![0; MAX_FRAME]] {
            let result = send(&ours, &preamble, Duration::from_millis(50));
            assert!(matches!(result, Err(PreambleError::Deadline(_))), "{result:?}");
        }
    }

    #[test]
    fn options_are_signed_with_the_key_and_too_long_ones_are_not_sent() {
        let key = KeyPair::generate_ed25519("").unwrap();
        let options = ServerOptions {
            user: Some("user".into()),
            ..ServerOptions::default()
        };
        let framed = sign(&options, &key).unwrap();
        let preamble = Preamble::from_frame(&framed[4..]).unwrap();
        let signature = SshSig::from_pem(&preamble.signature).unwrap();
        let verify = |key: &KeyPair| key.public_key().verify(NAMESPACE, &preamble.options, &signature);
        verify(&key).unwrap();
        verify(&KeyPair::generate_ed25519("").unwrap()).unwrap_err();
        assert_eq!(ServerOptions::from_message(&preamble.options).unwrap(), options);

        let authorized_keys = |length| ServerOptions {
            authorized_keys: Some(vec![b'#'; length]),
            ..ServerOptions::default()
        };
        assert!(sign(&authorized_keys(MAX_AUTHORIZED_KEYS), &key).is_ok());
        let error = sign(&authorized_keys(MAX_FRAME), &key).unwrap_err();
        assert!(matches!(error, PreambleError::TooLong));
    }
}
