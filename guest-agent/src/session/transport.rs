//! The stream under the SSH connection, where reading never waits for writing.
//!
//! russh sends all it has before it reads on. A client that does the same, as PuTTY's do on pipes, and the server would
//! wait for each other once both directions are full. So every write is taken here and a task of its own sends it;
//! outlets wait while much is unsent, and what a client asks for without reading the answers ends at a hard limit.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::net::FdStream;

/// Unsent bytes above which outlets give no more.
const SOFT_LIMIT: usize = 256 << 10;

/// Unsent bytes above which the connection is not read: more than outlets can have queued below the soft limit.
const HARD_LIMIT: usize = 8 << 20;

/// The stream, for one task that reads and writes.
pub(super) struct Transport {
    stream: FdStream,
    outbound: Arc<Outbound>,
}

/// What was taken and not sent yet.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    unsent: Mutex<Unsent>,
    /// Fewer bytes than the soft limit are unsent.
    room: Notify,
    /// Nothing more will be written.
    shut_down: Notify,
}

#[derive(Debug, Default)]
struct Unsent {
    bytes: BytesMut,
    /// Why nothing can be sent any more.
    failure: Option<io::ErrorKind>,
    is_closed: bool,
    /// The sending task, which waits for bytes.
    sender: Option<Waker>,
    /// The writing task, which waits for room or for the end.
    writer: Option<Waker>,
}

impl Transport {
    /// A transport over `stream`, and what tells outlets when to wait. The sending task ends with the transport.
    pub(super) fn new(stream: FdStream) -> (Self, Arc<Outbound>) {
        let outbound = Arc::new(Outbound::default());
        let (sending, mut output) = (Arc::clone(&outbound), stream.clone());
        tokio::spawn(async move { poll_fn(|context| sending.poll_send(&mut output, context)).await });
        let shared = Arc::clone(&outbound);
        (Self { stream, outbound }, shared)
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        let mut unsent = self.outbound.unsent();
        unsent.is_closed = true;
        wake(&mut unsent.sender);
        drop(unsent);
        self.outbound.room.notify_waiters();
    }
}

impl Outbound {
    /// Waits until little is unsent.
    pub(super) async fn room(&self) {
        loop {
            let room = self.room.notified();
            if self.unsent().has_room() {
                return;
            }
            room.await;
        }
    }

    /// Waits until the stream is being shut down, for one that waits.
    pub(super) async fn shut_down(&self) {
        self.shut_down.notified().await;
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends whatever comes. Ready when nothing can come or be sent any more.
    fn poll_send(&self, output: &mut FdStream, context: &mut Context<'_>) -> Poll<()> {
        let mut unsent = self.unsent();
        let ended = unsent.poll_send(output, context);
        if unsent.has_room() {
            self.room.notify_waiters();
        }
        if unsent.bytes.len() < HARD_LIMIT {
            wake(&mut unsent.writer);
        }
        ended
    }
}

impl Unsent {
    fn has_room(&self) -> bool {
        self.bytes.len() < SOFT_LIMIT || self.is_closed || self.failure.is_some()
    }

    fn poll_send(&mut self, output: &mut FdStream, context: &mut Context<'_>) -> Poll<()> {
        while !self.bytes.is_empty() {
            match ready!(Pin::new(&mut *output).poll_write(context, &self.bytes)) {
                Ok(sent) => self.bytes.advance(sent),
                Err(error) => {
                    self.failure = Some(error.kind());
                    self.bytes.clear();
                }
            }
        }
        if self.is_closed || self.failure.is_some() {
            return Poll::Ready(());
        }
        self.sender = Some(context.waker().clone());
        Poll::Pending
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut unsent = self.outbound.unsent();
        if let Some(failure) = unsent.failure {
            return Poll::Ready(Err(failure.into()));
        }
        if unsent.bytes.len() >= HARD_LIMIT {
            unsent.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        if unsent.bytes.is_empty() {
            // What there is room for needs no detour.
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
        unsent.bytes.extend_from_slice(bytes);
        wake(&mut unsent.sender);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.shut_down.notify_one();
        let mut unsent = self.outbound.unsent();
        if !unsent.bytes.is_empty() {
            unsent.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        drop(unsent);
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn transport() -> (UnixStream, Transport, Arc<Outbound>) {
        let (peer, ours) = UnixStream::pair().unwrap();
        let (transport, outbound) = Transport::new(FdStream::new(ours.into()).unwrap());
        (peer, transport, outbound)
    }

    fn numbers(count: u32) -> Vec<u8> {
        (0..count).flat_map(u32::to_le_bytes).collect()
    }

    #[tokio::test]
    async fn a_peer_that_writes_before_it_reads_is_read() {
        let (mut peer, mut transport, outbound) = transport();
        let (sent, expected) = (numbers(1 << 19), numbers(1 << 19));
        transport.write_all(&sent).await.unwrap();
        transport.flush().await.unwrap();
        assert!(!outbound.unsent().has_room(), "outlets wait");

        let peer = std::thread::spawn(move || {
            peer.write_all(&sent).unwrap();
            let mut received = vec![0; sent.len()];
            peer.read_exact(&mut received).unwrap();
            received
        });
        let mut read = vec![0; expected.len()];
        transport.read_exact(&mut read).await.unwrap();
        outbound.room().await;
        transport.shutdown().await.unwrap();
        assert!(read == expected && peer.join().unwrap() == expected);
    }

    #[tokio::test]
    async fn what_a_peer_never_reads_is_bounded() {
        let (peer, mut transport, outbound) = transport();
        let chunk = vec![7; 1 << 20];
        let mut context = Context::from_waker(Waker::noop());
        let mut taken = 0;
        while let Poll::Ready(written) = Pin::new(&mut transport).poll_write(&mut context, &chunk) {
            taken += written.unwrap();
        }
        assert!(taken >= HARD_LIMIT && outbound.unsent().bytes.len() < HARD_LIMIT + chunk.len());
        drop(peer);
        outbound.room().await;
        transport.write_all(&chunk).await.unwrap_err();
    }

    #[tokio::test]
    async fn the_end_comes_after_all_that_was_written() {
        let (mut peer, mut transport, _outbound) = transport();
        let sent = numbers(1 << 19);
        transport.write_all(&sent).await.unwrap();
        let peer = std::thread::spawn(move || {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).unwrap();
            received
        });
        transport.shutdown().await.unwrap();
        assert!(peer.join().unwrap() == sent);
    }
}
