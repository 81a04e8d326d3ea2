//! How a running VM is told to stand still, to go on, and to be saved.
//!
//! One language on two sockets: from whoever controls a sandbox to its keeper, and from the keeper to the machine. A
//! command is one byte, with the files to write to beside it (unix(7), `SCM_RIGHTS`) and behind it what else it says; each
//! is answered by one JSON line.

pub(super) mod server;

use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use msb_ssh::fd_passing;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::args::Lifetime;
use crate::pools::PoolRef;
use crate::sandbox::deadline::{TimeLimit, Timeout, TimeoutEnd};
use crate::store::names::Name;

/// The longest answer, in bytes, with its newline.
const MAX_ANSWER: usize = 16 * 1024;

/// The longest description that follows a command, in bytes.
const MAX_DESCRIPTION: usize = 4096;

/// What is asked of a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Stand still until [`Command::Resume`].
    Pause,
    /// Go on.
    Resume,
    /// Stand still as long as the connection lasts, and write state and memory to two empty files.
    Save,
    /// End after a time from now, or never.
    SetTimeout {
        /// After which time.
        timeout: Option<Timeout>,
        /// What ends it then, if that shall be another end than before.
        end: Option<TimeoutEnd>,
    },
    /// Stand still, as one of this pool that anybody may take, and outlive the starter.
    Wait(PoolRef),
    /// Be this sandbox, for the starter whose end of a socket comes along.
    Take(Box<Take>),
    /// The guest is ready: give back what only its start took. Only a keeper says that, and it is not answered.
    Settle,
    /// Go on as if no time had passed, which the guest is told next. Only a keeper says that.
    GoOn,
}

/// What a sandbox that waited in a pool is from now on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// Its name.
    pub name: Option<Name>,
    /// What becomes of it when its new starter ends.
    pub lifetime: Lifetime,
    /// How long it may run from now on.
    pub limit: TimeLimit,
}

/// What became of a command.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done.
    Done,
    /// It was not, for this reason; nothing changed.
    Refused(String),
}

/// What came, if it was a command.
#[derive(Debug)]
pub(super) struct Request {
    /// `None` for a byte that is none of this version's.
    pub(super) command: Option<Command>,
    pub(super) files: Vec<OwnedFd>,
}

const PAUSE: u8 = b'P';
const RESUME: u8 = b'R';
const SAVE: u8 = b'S';
const SET_TIMEOUT: u8 = b'T';
const WAIT: u8 = b'W';
const TAKE: u8 = b'K';
const SETTLE: u8 = b'L';
const GO_ON: u8 = b'G';

/// What follows [`SET_TIMEOUT`]: milliseconds, little endian, zero for never; and what ends it then.
const TIMEOUT_LENGTH: usize = 9;
const ENDS: [(Option<TimeoutEnd>, u8); 3] = [
    (None, b'-'),
    (Some(TimeoutEnd::Stop), b's'),
    (Some(TimeoutEnd::Kill), b'k'),
];

impl Command {
    fn to_bytes(&self) -> Vec<u8> {
        match *self {
            Self::Pause => vec![PAUSE],
            Self::Resume => vec![RESUME],
            Self::Save => vec![SAVE],
            Self::SetTimeout { timeout, end } => {
                let millis = timeout.map_or(0, u64::from);
                let end = ENDS
                    .iter()
                    .find(|(of, _)| *of == end)
                    .expect("the table has all ends")
                    .1;
                [&[SET_TIMEOUT][..], &millis.to_le_bytes(), &[end]].concat()
            }
            Self::Wait(ref pool) => described(WAIT, pool),
            Self::Take(ref take) => described(TAKE, take),
            Self::Settle => vec![SETTLE],
            Self::GoOn => vec![GO_ON],
        }
    }

    /// `None` for what is none of this version's.
    fn read(first: u8, mut rest: impl Read) -> io::Result<Option<Self>> {
        Ok(match first {
            PAUSE => Some(Self::Pause),
            RESUME => Some(Self::Resume),
            SAVE => Some(Self::Save),
            SET_TIMEOUT => {
                let mut fields = [0; TIMEOUT_LENGTH];
                rest.read_exact(&mut fields)?;
                Self::set_timeout(fields)
            }
            WAIT => description(rest)?.map(Self::Wait),
            TAKE => description(rest)?.map(|take| Self::Take(Box::new(take))),
            SETTLE => Some(Self::Settle),
            GO_ON => Some(Self::GoOn),
            _ => None,
        })
    }

    fn set_timeout(fields: [u8; TIMEOUT_LENGTH]) -> Option<Self> {
        let (millis, end) = fields.split_first_chunk().expect("it is longer");
        let timeout = match u64::from_le_bytes(*millis) {
            0 => None,
            millis => Some(Timeout::try_from(millis).ok()?),
        };
        let (end, _) = ENDS.into_iter().find(|(_, of)| end == [*of])?;
        Some(Self::SetTimeout { timeout, end })
    }
}

/// A command and, behind its length as two bytes, little endian, a description as JSON.
fn described(command: u8, description: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(description).expect("a description has no failing serializers");
    let length = u16::try_from(json.len()).expect("names have at most 63 characters");
    [&[command][..], &length.to_le_bytes(), &json].concat()
}

/// `None` for one that is none of this version's.
fn description<T: DeserializeOwned>(mut source: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 2];
    source.read_exact(&mut length)?;
    let length = usize::from(u16::from_le_bytes(length));
    if length > MAX_DESCRIPTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut json = vec![0; length];
    source.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json).ok())
}

/// Sends a command with its files.
///
/// # Errors
/// When nobody is there to receive it.
pub fn send(socket: &UnixStream, command: &Command, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    // So few bytes go at once or not at all.
    fd_passing::send(socket, &command.to_bytes(), files).map(drop)
}

/// Receives a command; `None` at the end of the stream.
///
/// # Errors
/// When the socket fails, or does not block and has nothing.
pub(super) fn receive(socket: &UnixStream) -> io::Result<Option<Request>> {
    let mut byte = [0];
    let (received, files) = fd_passing::receive(socket, &mut byte)?;
    if received == 0 {
        return Ok(None);
    }
    let command = Command::read(byte[0], socket).map_err(cut_off)?;
    Ok(Some(Request { command, files }))
}

/// A command is sent whole. One whose end is not there is none, and what may come of it would be taken for others.
fn cut_off(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::UnexpectedEof.into(),
        _ => error,
    }
}

impl Answer {
    /// The line.
    pub(super) fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("an answer has no failing serializers");
        line.push(b'\n');
        line
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// When the connection ends before it is whole, or it is none.
    pub fn read(mut socket: &UnixStream) -> io::Result<Self> {
        let mut line = Vec::new();
        let mut buffer = [0; 1024];
        while line.last() != Some(&b'\n') {
            match socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => line.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if line.len() > MAX_ANSWER {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_command_arrives_with_its_files_and_what_is_none_is_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&ours, &Command::Save, &[writer.as_fd(), writer.as_fd()]).unwrap();
        drop(writer);
        send(&ours, &Command::Pause, &[]).unwrap();
        (&ours).write_all(b"x").unwrap();
        drop(ours);

        let Request { command, mut files } = receive(&theirs).unwrap().unwrap();
        assert_eq!((command, files.len()), (Some(Command::Save), 2));
        File::from(files.remove(0)).write_all(b"state").unwrap();
        drop(files);
        let mut written = String::new();
        reader.read_to_string(&mut written).unwrap();
        assert_eq!(written, "state");
        assert_eq!(receive(&theirs).unwrap().unwrap().command, Some(Command::Pause));
        assert_eq!(receive(&theirs).unwrap().unwrap().command, None);
        assert!(receive(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_time_arrives_as_it_was_sent_and_what_is_cut_off_is_no_command() {
        for timeout in [None, Some(Timeout::try_from(90_000).unwrap())] {
            for (end, _) in ENDS {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let command = Command::SetTimeout { timeout, end };
                send(&ours, &command, &[]).unwrap();
                assert_eq!(receive(&theirs).unwrap().unwrap().command, Some(command.clone()));
                (&ours).write_all(&command.to_bytes()[..5]).unwrap();
                theirs.set_nonblocking(true).unwrap();
                let error = receive(&theirs).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }

    #[test]
    fn what_a_sandbox_is_from_now_on_arrives_as_it_was_sent() {
        let pool = PoolRef {
            name: "fresh".parse().unwrap(),
            id: "0123456789ab".into(),
        };
        let take = Take {
            name: Some("a".repeat(63).parse().unwrap()),
            lifetime: Lifetime::OfStarter,
            limit: TimeLimit {
                timeout: Timeout::try_from(u64::from(u32::MAX)).ok(),
                end: TimeoutEnd::Kill,
            },
        };
        for command in [Command::Wait(pool), Command::Take(Box::new(take))] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            send(&ours, &command, &[theirs.as_fd()]).unwrap();
            let request = receive(&theirs).unwrap().unwrap();
            assert_eq!((request.command, request.files.len()), (Some(command.clone()), 1));
            let bytes = command.to_bytes();
            for end in 1..bytes.len() {
                let (ours, theirs) = UnixStream::pair().unwrap();
                (&ours).write_all(&bytes[..end]).unwrap();
                drop(ours);
                receive(&theirs).unwrap_err();
            }
        }
        let too_long = [&[TAKE][..], &u16::MAX.to_le_bytes()].concat();
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(&too_long).unwrap();
        receive(&theirs).unwrap_err();
    }

    #[test]
    fn a_time_that_is_none_is_no_command() {
        for fields in [*b"\0\0\0\0\0\0\0\0x", *b"\xff\xff\xff\xff\xff\xff\xff\xffs"] {
            assert_eq!(Command::set_timeout(fields), None);
        }
    }

    #[test]
    fn an_answer_is_whole_or_an_error() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let refused = Answer::Refused("no\nspace".into());
        ours.write_all(&refused.to_line()).unwrap();
        assert_eq!(Answer::read(&theirs).unwrap(), refused);
        ours.write_all(b"\"done").unwrap();
        drop(ours);
        Answer::read(&theirs).unwrap_err();
    }
}
