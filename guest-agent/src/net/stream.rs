//! A tokio stream over any pair of pollable descriptors: a vsock or Unix socket, two pipes, a terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// Reads from one descriptor and writes to another, which may be the same.
///
/// Shutting it down half-closes a socket and closes nothing else: pipes end when the stream is dropped.
#[derive(Clone, Debug)]
pub struct FdStream {
    input: Arc<AsyncFd<OwnedFd>>,
    output: Arc<AsyncFd<OwnedFd>>,
}

impl FdStream {
    /// A stream over one descriptor that goes both ways.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking or cannot be polled, as a regular file.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let input = Arc::new(register(fd)?);
        let output = Arc::clone(&input);
        Ok(Self { input, output })
    }

    /// A stream over a descriptor for each direction.
    ///
    /// # Errors
    /// As for [`FdStream::new`].
    pub fn from_pair(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let (input, output) = (Arc::new(register(input)?), Arc::new(register(output)?));
        Ok(Self { input, output })
    }

    /// A view that tells whether the peer sends or is gone, without taking any byte.
    pub fn liveness(&self) -> Liveness {
        Liveness(Arc::clone(&self.input))
    }

    /// Reads what is there, without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there, and as for `read(2)`.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.input.get_ref(), buffer)?)
    }

    /// Writes what there is room for, without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room, and as for `write(2)`.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.output.get_ref(), bytes)?)
    }

    /// The descriptor that is read from.
    pub fn input(&self) -> &OwnedFd {
        self.input.get_ref()
    }
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    // SAFETY: the descriptor is owned, never replaced, and closed with its registration.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) };
    registered.map_err(Into::into)
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.input.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *unfilled)?)) {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.output.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), buffer)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(self.output.get_ref(), rustix::net::Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTSOCK | rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

/// Tells what the peer of an [`FdStream`] does, without taking any byte.
#[derive(Clone, Debug)]
pub struct Liveness(Arc<AsyncFd<OwnedFd>>);

impl Liveness {
    /// Waits until bytes wait to be read, or the peer is gone.
    pub async fn readable(&self) {
        loop {
            let Ok(mut guard) = self.0.ready(Interest::READABLE).await else {
                return;
            };
            // The readiness may be left over from bytes that were read since.
            if self.poll_now(PollFlags::IN) {
                return;
            }
            guard.clear_ready();
        }
    }

    /// Whether the peer closed its end in both directions.
    pub fn is_gone(&self) -> bool {
        self.poll_now(PollFlags::empty())
    }

    fn poll_now(&self, events: PollFlags) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.0.get_ref().as_fd(), events)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).map_or(true, |ready| ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn readiness_left_over_from_bytes_already_read_does_not_count() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut stream = FdStream::new(ours.into()).unwrap();
        peer.write_all(b"abc").unwrap();
        let mut buffer = [0; 3];
        stream.read_exact(&mut buffer).await.unwrap();

        let liveness = stream.liveness();
        let waiting = tokio::spawn(async move { liveness.readable().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());

        peer.write_all(b"d").unwrap();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_closed_is_gone() {
        let (peer, ours) = UnixStream::pair().unwrap();
        let stream = FdStream::new(ours.into()).unwrap();
        assert!(!stream.liveness().is_gone());
        drop(peer);
        assert!(stream.liveness().is_gone());
    }
}
