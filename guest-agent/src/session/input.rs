//! What a channel received and its process has not read yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::budget::Budget;

/// The least room of a chunk, in bytes: a trickle fills one instead of making many.
const MIN_CHUNK: usize = 4096;

/// How long what a client sent before it closed its channel waits for a consumer.
const LINGER: Duration = Duration::from_secs(60);

/// A queue that takes input without ever waiting, and gives it to one consumer.
#[derive(Debug)]
pub(super) struct Input {
    budget: Arc<Budget>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// What is being written.
    current: Bytes,
    chunks: VecDeque<Vec<u8>>,
    /// The peer sends no more.
    ended: bool,
    /// Nobody consumes any more: what arrives is dropped.
    refused: bool,
}

impl Input {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Takes input. Returns whether earlier input still waits for the consumer.
    pub(super) fn push(&self, data: &[u8]) -> bool {
        let mut state = self.state();
        if state.refused || state.ended || data.is_empty() {
            return false;
        }
        self.budget.received(data.len());
        let waiting = !state.chunks.is_empty() || !state.current.is_empty();
        match state.chunks.back_mut() {
            Some(last) if last.capacity() - last.len() >= data.len() => last.extend_from_slice(data),
            _ => {
                let mut chunk = Vec::with_capacity(data.len().max(MIN_CHUNK));
                chunk.extend_from_slice(data);
                state.chunks.push_back(chunk);
            }
        }
        drop(state);
        self.changed.notify_one();
        waiting
    }

    /// No more input will come.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_one();
    }

    /// Drops what waits and whatever comes.
    pub(super) fn refuse(&self) {
        let mut state = self.state();
        state.refused = true;
        let (current, chunks) = (std::mem::take(&mut state.current), std::mem::take(&mut state.chunks));
        drop(state);
        self.budget
            .consumed(current.len() + chunks.iter().map(Vec::len).sum::<usize>());
        self.changed.notify_one();
    }

    /// Writes everything to `sink` until the input ends or the sink takes no more, then shuts the sink down. Nothing is
    /// lost when this is cancelled and called again.
    pub(super) async fn feed(&self, sink: &mut (impl AsyncWrite + Unpin)) {
        while let Some(chunk) = self.next().await {
            match sink.write(&chunk).await {
                Ok(length @ 1..) => self.advance(length),
                Ok(0) | Err(_) => self.refuse(),
            }
        }
        // A sink that is gone is shut down already.
        let _ = sink.shutdown().await;
    }

    /// After the client closed the channel: writes what it sent before, unless the sink takes too long.
    pub(super) async fn feed_rest(&self, sink: &mut (impl AsyncWrite + Unpin)) {
        self.end();
        let _ = tokio::time::timeout(LINGER, self.feed(sink)).await;
        self.refuse();
    }

    /// What to write next.
    async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state();
                if state.current.is_empty() {
                    state.current = state.chunks.pop_front().unwrap_or_default().into();
                }
                if !state.current.is_empty() {
                    return Some(state.current.clone());
                }
                if state.ended || state.refused {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn advance(&self, length: usize) {
        self.state().current.advance(length);
        self.budget.consumed(length);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.refuse();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::net::FdStream;

    fn input() -> (Input, UnixStream) {
        let (peer, ours) = UnixStream::pair().unwrap();
        let budget = Arc::new(Budget::new(
            FdStream::new(ours.into()).unwrap().liveness(),
            Arc::default(),
        ));
        (Input::new(budget), peer)
    }

    #[tokio::test]
    async fn a_trickle_shares_chunks() {
        let (input, _peer) = input();
        for _ in 0..MIN_CHUNK {
            input.push(b"ab");
        }
        assert_eq!(input.state().chunks.len(), 2);
    }

    #[tokio::test]
    async fn everything_queued_before_the_end_is_fed() {
        let (input, _peer) = input();
        input.push(b"one ");
        input.push(&[b'x'; MIN_CHUNK]);
        input.end();
        assert!(!input.push(b"late"));
        let mut fed = Vec::new();
        input.feed(&mut fed).await;
        assert_eq!(fed.len(), 4 + MIN_CHUNK);
        assert!(fed.starts_with(b"one x"));
    }

    #[tokio::test]
    async fn a_feed_that_is_cancelled_and_begun_again_loses_nothing() {
        let (input, _peer) = input();
        let (mut sink, mut source) = tokio::io::duplex(3);
        input.push(b"one two");
        input.push(&[b'x'; MIN_CHUNK]);
        input.end();
        let cancelled = tokio::time::timeout(Duration::ZERO, input.feed(&mut sink)).await;
        assert!(cancelled.is_err());
        let mut received = Vec::new();
        let receiving = tokio::io::AsyncReadExt::read_to_end(&mut source, &mut received);
        tokio::join!(input.feed(&mut sink), receiving).1.unwrap();
        assert_eq!(received, [b"one two".as_slice(), &[b'x'; MIN_CHUNK]].concat());
        assert_eq!(input.budget.window(), WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_closed_channel_left_waits_for_its_consumer_for_a_while() {
        let (input, _peer) = input();
        input.push(&vec![0; 5 << 20]);
        let (mut sink, _unread) = tokio::io::duplex(3);
        let begun = tokio::time::Instant::now();
        input.feed_rest(&mut sink).await;
        assert_eq!(begun.elapsed(), LINGER);
        assert_eq!(input.budget.window(), WINDOW, "what was dropped still counts");
    }

    #[tokio::test]
    async fn refused_input_holds_nothing() {
        let (input, _peer) = input();
        input.push(&vec![0; 5 << 20]);
        assert_ne!(input.budget.window(), WINDOW);
        input.refuse();
        input.push(&vec![0; 5 << 20]);
        assert_eq!(input.budget.window(), WINDOW);
    }

    use super::super::WINDOW;
}
