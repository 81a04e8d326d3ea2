//! The process's own standard streams, without threads and without blocking the runtime.
//!
//! Their descriptions are shared with other processes, so `O_NONBLOCK` is not for us to set. A pipe or a terminal is
//! opened anew instead, for a description of our own; where that is refused, each write is one that is sure to fit.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most bytes a blocking descriptor is sure to take when poll(2) calls it writable (`PIPE_BUF`, `pipe(7)`).
const PIPE_BUF: usize = 4096;

/// Standard input, output and error of a session's local end.
#[derive(Debug)]
pub struct Stdio {
    pub(super) input: LocalInput,
    pub(crate) output: LocalOutput,
    pub(crate) error: LocalOutput,
    terminal: Option<OwnedFd>,
}

impl Stdio {
    /// Those of this process.
    ///
    /// # Errors
    /// When a descriptor is closed, or there is no runtime that drives input and output.
    pub fn inherit() -> io::Result<Self> {
        Self::new(io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd())
    }

    /// When the first byte of output or error was written, if one was.
    pub fn first_output(&self) -> Option<Instant> {
        let written = [&self.output, &self.error].map(|output| output.began.get().copied());
        written.into_iter().flatten().min()
    }

    /// Any three descriptors. They are duplicated, not taken.
    ///
    /// # Errors
    /// As [`Self::inherit`].
    pub fn new(input: BorrowedFd<'_>, output: BorrowedFd<'_>, error: BorrowedFd<'_>) -> io::Result<Self> {
        let terminal = rustix::termios::isatty(input)
            .then(|| input.try_clone_to_owned())
            .transpose()?;
        Ok(Self {
            input: LocalInput::new(input)?,
            output: LocalOutput::new(output)?,
            error: LocalOutput::new(error)?,
            terminal,
        })
    }

    /// Reads what there is of standard input; 0 is its end.
    ///
    /// # Errors
    /// When the system's answer is one.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer).await
    }

    /// Writes all of `bytes` to standard output, at the pace of whoever reads it.
    ///
    /// # Errors
    /// When the system's answer is one: [`io::ErrorKind::BrokenPipe`] when nobody reads it any more.
    pub async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes).await
    }

    /// The terminal that standard input is, if it is one.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }
}

/// A descriptor that may or may not be one to wait for: regular files are always ready.
#[derive(Debug)]
enum Descriptor {
    Polled(AsyncFd<OwnedFd>),
    Direct(OwnedFd),
}

impl Descriptor {
    fn new(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an OwnedFd is open, always the same, and owned by the AsyncFd until that is dropped.
        match unsafe { AsyncFd::register_with_interest(descriptor, interest) } {
            Ok(polled) => Ok(Self::Polled(polled)),
            Err(refused) => match refused.into_parts() {
                (descriptor, error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Self::Direct(descriptor)),
                (_, error) => Err(error),
            },
        }
    }

    /// Waits until `operation` can be done, and does it. It is tried only when poll(2) says that it will not block.
    async fn when_ready<T>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let polled = match self {
                Self::Direct(descriptor) => match operation(descriptor.as_fd()) {
                    Err(Errno::INTR) => continue,
                    result => return Ok(result?),
                },
                Self::Polled(polled) => polled,
            };
            let mut guard = polled.ready(interest).await?;
            if !is_ready(polled.get_ref().as_fd(), interest)? {
                guard.clear_ready();
                continue;
            }
            match operation(polled.get_ref().as_fd()) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => guard.clear_ready(),
                result => return Ok(result?),
            }
        }
    }
}

fn is_ready(descriptor: BorrowedFd<'_>, interest: Interest) -> io::Result<bool> {
    let events = if interest.is_readable() {
        PollFlags::IN
    } else {
        PollFlags::OUT
    };
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::from_borrowed_fd(descriptor, events)], Some(&no_wait)) {
        Err(Errno::INTR) => Ok(false),
        ready => Ok(ready? == 1),
    }
}

/// Where a session's input comes from.
#[derive(Debug)]
pub(super) struct LocalInput(Descriptor);

impl LocalInput {
    fn new(input: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Descriptor::new(input.try_clone_to_owned()?, Interest::READABLE)?))
    }

    /// Reads what there is; 0 is the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .when_ready(Interest::READABLE, |descriptor| {
                rustix::io::read(descriptor, &mut *buffer)
            })
            .await
    }
}

/// How a write is kept from blocking.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Write {
    /// The description is our own and non-blocking, or never blocks.
    Whole,
    /// `MSG_DONTWAIT`.
    Socket,
    /// No more than is sure to fit.
    Careful,
}

/// Where a session's output goes.
#[derive(Debug)]
pub(crate) struct LocalOutput {
    descriptor: Descriptor,
    write: Write,
    /// When the first byte was written.
    began: OnceLock<Instant>,
}

impl LocalOutput {
    fn new(output: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(output)?;
        let (descriptor, write) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => (output.try_clone_to_owned()?, Write::Socket),
            FileType::RegularFile => (output.try_clone_to_owned()?, Write::Whole),
            _ => match open_anew(output) {
                Some(own) => (own, Write::Whole),
                None => (output.try_clone_to_owned()?, Write::Careful),
            },
        };
        Ok(Self {
            descriptor: Descriptor::new(descriptor, Interest::WRITABLE)?,
            write,
            began: OnceLock::new(),
        })
    }

    /// Writes all of `bytes`, at the pace of whoever reads them.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let operation = |descriptor: BorrowedFd<'_>| match self.write {
                Write::Whole => rustix::io::write(descriptor, bytes),
                Write::Socket => rustix::net::send(descriptor, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Write::Careful => rustix::io::write(descriptor, &bytes[..bytes.len().min(PIPE_BUF)]),
            };
            let written = self.descriptor.when_ready(Interest::WRITABLE, operation).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.began.get_or_init(Instant::now);
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

/// The same pipe or terminal through a non-blocking description of our own. Refused without `/proc`, or when it belongs
/// to another user.
fn open_anew(descriptor: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[tokio::test]
    async fn a_pipe_that_is_full_does_not_stop_the_runtime_and_keeps_its_mode() {
        for write in [Write::Whole, Write::Careful] {
            let (mut reader, writer) = io::pipe().unwrap();
            let mut output = LocalOutput::new(writer.as_fd()).unwrap();
            assert_eq!(output.write, Write::Whole, "an own pipe can be opened anew");
            if write == Write::Careful {
                let descriptor = Descriptor::new(writer.try_clone().unwrap().into(), Interest::WRITABLE).unwrap();
                output = LocalOutput {
                    descriptor,
                    write,
                    began: OnceLock::new(),
                };
            }
            let bytes = vec![7; 1024 * 1024];
            // The write cannot complete before the read starts: on one thread, only if it does not block.
            let read = async {
                tokio::task::yield_now().await;
                tokio::task::spawn_blocking(move || {
                    let mut read = vec![0; 1024 * 1024];
                    reader.read_exact(&mut read).unwrap();
                    read
                })
                .await
            };
            let (written, read) = tokio::join!(output.write_all(&bytes), read);
            written.unwrap();
            assert!(read.unwrap() == bytes);
            assert!(!rustix::fs::fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
        }
    }

    #[tokio::test]
    async fn the_first_output_is_the_first_byte_of_either_stream() {
        let file = tempfile::tempfile().unwrap();
        let stdio = Stdio::new(file.as_fd(), file.as_fd(), file.as_fd()).unwrap();
        stdio.output.write_all(b"").await.unwrap();
        assert_eq!(stdio.first_output(), None);
        stdio.error.write_all(b"error").await.unwrap();
        let first = stdio.first_output();
        assert!(first.is_some());
        stdio.output.write_all(b"output").await.unwrap();
        assert_eq!(stdio.first_output(), first);
    }

    #[tokio::test]
    async fn files_and_the_null_device_are_written_and_read_though_they_cannot_be_waited_for() {
        let mut file = tempfile::tempfile().unwrap();
        LocalOutput::new(file.as_fd())
            .unwrap()
            .write_all(b"content")
            .await
            .unwrap();
        file.rewind().unwrap();
        let mut buffer = [0; 16];
        assert_eq!(
            LocalInput::new(file.as_fd()).unwrap().read(&mut buffer).await.unwrap(),
            7
        );

        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        LocalOutput::new(null.as_fd())
            .unwrap()
            .write_all(b"gone")
            .await
            .unwrap();
        assert_eq!(
            LocalInput::new(null.as_fd()).unwrap().read(&mut buffer).await.unwrap(),
            0
        );
    }

    #[tokio::test]
    async fn input_that_comes_later_is_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        let input = LocalInput::new(reader.as_fd()).unwrap();
        let mut buffer = [0; 16];
        let write = async {
            tokio::task::yield_now().await;
            io::Write::write_all(&mut writer, b"later").unwrap();
        };
        let (read, ()) = tokio::join!(input.read(&mut buffer), write);
        assert_eq!(&buffer[..read.unwrap()], b"later");
        drop(writer);
        assert_eq!(input.read(&mut buffer).await.unwrap(), 0);
    }
}
