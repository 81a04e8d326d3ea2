//! The stream under the SSH connection: read only while the [`Gate`] is open, and never in the way of reading.
//!
//! The connection's task writes a packet whole before it reads the next, and so does the guest's: with both directions
//! full, each would wait for the other to read. Here a write is always taken, and what the stream has no room for is sent
//! while the task waits to read. Channel windows bound how much that can be; [`OUTBOUND_LIMIT`] does if a guest grants
//! windows beyond reason.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::Gate;

/// Bytes that wait to be sent, at most about: eight channels with their full windows.
const OUTBOUND_LIMIT: usize = 16 * 1024 * 1024;

/// The stream under the SSH connection, for one task that reads and writes.
pub(super) struct Transport<S> {
    stream: S,
    gate: Arc<Gate>,
    outbound: BytesMut,
}

impl<S> Transport<S> {
    pub(super) fn new(stream: S, gate: Arc<Gate>) -> Self {
        Self {
            stream,
            gate,
            outbound: BytesMut::new(),
        }
    }
}

impl<S: AsyncWrite + Unpin> Transport<S> {
    /// Sends what waits. Ready when nothing does any more.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.outbound))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbound.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A stream that takes no more may still have something to say: its end is what reading tells.
        let _ = self.poll_send(context);
        ready!(self.gate.poll_open(context));
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_send(context)? {
            Poll::Ready(()) => {
                if let Poll::Ready(sent) = Pin::new(&mut self.stream).poll_write(context, bytes) {
                    return Poll::Ready(sent);
                }
            }
            Poll::Pending if self.outbound.len() >= OUTBOUND_LIMIT => return Poll::Pending,
            Poll::Pending => {}
        }
        self.outbound.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_send(context)? {
            Poll::Ready(()) => Pin::new(&mut self.stream).poll_flush(context),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::new(1000, 100))
    }

    #[tokio::test]
    async fn a_write_is_taken_though_the_stream_is_full_and_sent_while_reading() {
        let (stream, mut guest) = duplex(16);
        let mut transport = Transport::new(stream, gate());
        let sent: Vec<u8> = (0..200).collect();
        transport.write_all(&sent).await.unwrap();
        transport.flush().await.unwrap();

        let mut received = vec![0; sent.len()];
        let answer = async {
            guest.read_exact(&mut received).await.unwrap();
            guest.write_all(b"all").await.unwrap();
        };
        let mut read = [0; 3];
        let (all, ()) = tokio::join!(transport.read_exact(&mut read), answer);
        all.unwrap();
        assert_eq!((received, &read), (sent, b"all"));
    }

    #[tokio::test]
    async fn what_waits_to_be_sent_is_bounded_and_sent_before_the_end() {
        let (stream, mut guest) = duplex(16);
        let mut transport = Transport::new(stream, gate());
        let chunk = vec![7; 1024 * 1024];
        let mut context = Context::from_waker(Waker::noop());
        let mut taken = 0;
        while let Poll::Ready(written) = Pin::new(&mut transport).poll_write(&mut context, &chunk) {
            taken += written.unwrap();
        }
        assert!(
            (OUTBOUND_LIMIT..=OUTBOUND_LIMIT + 2 * chunk.len()).contains(&taken),
            "{taken}"
        );

        let mut received = Vec::new();
        let (shut, read) = tokio::join!(
            async {
                let shut = transport.shutdown().await;
                drop(transport);
                shut
            },
            guest.read_to_end(&mut received)
        );
        shut.unwrap();
        read.unwrap();
        assert_eq!(received.len(), taken);
    }

    #[tokio::test]
    async fn nothing_is_read_while_the_gate_is_closed() {
        let (stream, mut guest) = duplex(16);
        let gate = gate();
        let mut transport = Transport::new(stream, Arc::clone(&gate));
        guest.write_all(b"waits").await.unwrap();
        gate.received(101);
        let mut context = Context::from_waker(Waker::noop());
        let mut bytes = [0; 5];
        let read = Pin::new(&mut transport).poll_read(&mut context, &mut ReadBuf::new(&mut bytes));
        assert!(read.is_pending());

        let consume = async {
            tokio::task::yield_now().await;
            gate.consumed(101);
        };
        let (read, ()) = tokio::join!(transport.read_exact(&mut bytes), consume);
        read.unwrap();
        assert_eq!(&bytes, b"waits");
    }
}
