//! Bounds what a connection holds of received data.
//!
//! russh's client grants new window whenever data arrives, and its [`Handler`](russh::client::Handler) cannot change how
//! much. So the bound is one layer below: while sessions hold more than the limit, nothing more is read from the
//! transport, and the guest's own window fills. What the client sends, keystrokes and signals above all, goes on.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use msb_protocol::receive_budget::ReceiveBudget;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counts received data, and stops the reading of more.
#[derive(Debug)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug)]
struct State {
    budget: ReceiveBudget,
    reader: Option<Waker>,
}

impl Gate {
    pub(super) fn new(window: u32, limit: usize) -> Self {
        Self(Mutex::new(State {
            budget: ReceiveBudget::new(window, limit),
            reader: None,
        }))
    }

    pub(super) fn received(&self, bytes: usize) {
        self.state().budget.received(bytes);
    }

    pub(super) fn consumed(&self, bytes: usize) {
        let mut state = self.state();
        state.budget.consumed(bytes);
        if !state.budget.is_throttled()
            && let Some(reader) = state.reader.take()
        {
            drop(state);
            reader.wake();
        }
    }

    fn poll_open(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.budget.is_throttled() {
            return Poll::Ready(());
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counters stay true whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transport that is read only while its [`Gate`] is open.
pub(super) struct GatedStream<S> {
    stream: S,
    gate: Arc<Gate>,
}

impl<S> GatedStream<S> {
    pub(super) fn new(stream: S, gate: Arc<Gate>) -> Self {
        Self { stream, gate }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GatedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.gate.poll_open(context) {
            Poll::Ready(()) => Pin::new(&mut self.stream).poll_read(context, buffer),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GatedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
