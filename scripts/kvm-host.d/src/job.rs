//! What the two ends tell each other on the control port.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The ports, in the order in which QEMU gets them. Control is the last: the kernel handles them in order, so whoever
/// reads a job from it knows that the others are connected.
pub(crate) const PORTS: [&str; 4] = ["stdin", "stdout", "stderr", "control"];

/// Tags of the 9p file systems.
pub(crate) const ROOT_TAG: &str = "root";
/// Of the directory whose writes stay.
pub(crate) const SHARED_TAG: &str = "shared";

/// Most bytes in one string of a job, and most strings in one list: beyond what `execve` takes.
const LIMIT: u32 = 4 << 20;

/// What follows a job inwards, besides the numbers of output streams that nobody reads any more: it means nothing, but
/// comes with an interrupt.
pub(crate) const HEARTBEAT: u8 = u8::MAX;

/// A command to run inside.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Job {
    /// Where to run it.
    pub(crate) directory: OsString,
    /// The directory whose writes reach this machine.
    pub(crate) shared: OsString,
    /// `NAME=VALUE` each; nothing else is in its environment.
    pub(crate) environment: Vec<OsString>,
    /// Program and arguments.
    pub(crate) command: Vec<OsString>,
}

/// How the job ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    /// As a shell counts it: 128+n for a death by signal n.
    pub(crate) status: u8,
    /// Bytes sent to standard output and standard error.
    pub(crate) sent: [u64; 2],
}

impl Job {
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        put_list(&mut bytes, &[&self.directory, &self.shared])?;
        put_list(&mut bytes, &self.environment.iter().collect::<Vec<_>>())?;
        put_list(&mut bytes, &self.command.iter().collect::<Vec<_>>())?;
        to.write_all(&bytes)
    }

    pub(crate) fn read(mut from: impl Read) -> io::Result<Self> {
        let [directory, shared] = take_list(&mut from)?
            .try_into()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a job has two directories"))?;
        Ok(Self {
            directory,
            shared,
            environment: take_list(&mut from)?,
            command: take_list(&mut from)?,
        })
    }
}

impl Outcome {
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut bytes = [0; 17];
        bytes[0] = self.status;
        bytes[1..9].copy_from_slice(&self.sent[0].to_le_bytes());
        bytes[9..].copy_from_slice(&self.sent[1].to_le_bytes());
        to.write_all(&bytes)
    }

    pub(crate) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut status = [0];
        let mut sent = [[0; 8]; 2];
        from.read_exact(&mut status)?;
        from.read_exact(&mut sent[0])?;
        from.read_exact(&mut sent[1])?;
        Ok(Self {
            status: status[0],
            sent: sent.map(u64::from_le_bytes),
        })
    }
}

fn put_list(bytes: &mut Vec<u8>, list: &[&OsString]) -> io::Result<()> {
    bytes.extend(length(list.len())?);
    for item in list {
        bytes.extend(length(item.len())?);
        bytes.extend(item.as_bytes());
    }
    Ok(())
}

fn take_list(from: &mut impl Read) -> io::Result<Vec<OsString>> {
    let count = take_length(from)?;
    let mut list = Vec::new();
    for _ in 0..count {
        let mut item = Vec::new();
        let length = u64::from(take_length(from)?);
        if from.by_ref().take(length).read_to_end(&mut item)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        list.push(OsString::from_vec(item));
    }
    Ok(list)
}

fn length(length: usize) -> io::Result<[u8; 4]> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "command or environment too long");
    u32::try_from(length)
        .ok()
        .filter(|length| *length <= LIMIT)
        .map(u32::to_le_bytes)
        .ok_or_else(too_long)
}

fn take_length(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    let length = u32::from_le_bytes(bytes);
    if length > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "length out of bounds"));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_with_any_bytes_arrives_unchanged() {
        let job = Job {
            directory: "/work".into(),
            shared: "/out".into(),
            environment: vec!["A=1\n2".into(), OsString::from_vec(vec![b'B', b'=', 0xff])],
            command: vec!["sh".into(), "".into(), "a b".into()],
        };
        let mut wire = Vec::new();

        job.write(&mut wire).expect("a vector takes it");

        assert_eq!(Job::read(wire.as_slice()).expect("complete"), job);
    }

    #[test]
    fn a_job_that_is_cut_short_is_an_error() {
        let mut wire = Vec::new();
        Job {
            command: vec!["true".into()],
            ..Job::default()
        }
        .write(&mut wire)
        .expect("a vector takes it");

        for end in 0..wire.len() {
            assert!(Job::read(&wire[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn an_outcome_arrives_unchanged() {
        let outcome = Outcome {
            status: 143,
            sent: [u64::MAX, 7],
        };
        let mut wire = Vec::new();

        outcome.write(&mut wire).expect("a vector takes it");

        assert_eq!(Outcome::read(wire.as_slice()).expect("complete"), outcome);
    }
}
