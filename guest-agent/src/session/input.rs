//! What a channel received and its process has not read yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::budget::Budget;

/// The least room of a chunk, in bytes: a trickle fills one instead of making many.
const MIN_CHUNK: usize = 4096;

/// A queue that takes input without ever waiting, and gives it to one consumer.
#[derive(Debug)]
pub(super) struct Input {
    budget: Arc<Budget>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
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
        let waiting = !state.chunks.is_empty();
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
        let chunks = std::mem::take(&mut state.chunks);
        drop(state);
        self.budget.consumed(chunks.iter().map(Vec::len).sum());
        self.changed.notify_one();
    }

    /// Writes everything to `sink` until the input ends or the sink takes no more, then shuts the sink down.
    pub(super) async fn feed(&self, mut sink: impl AsyncWrite + Unpin) {
        while let Some(chunk) = self.next().await {
            let written = sink.write_all(&chunk).await;
            self.budget.consumed(chunk.len());
            if written.is_err() {
                self.refuse();
            }
        }
        // A sink that is gone is shut down already.
        let _ = sink.shutdown().await;
    }

    async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut state = self.state();
                if let Some(chunk) = state.chunks.pop_front() {
                    return Some(chunk);
                }
                if state.ended || state.refused {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::net::FdStream;

    fn input() -> (Input, UnixStream) {
        let (peer, ours) = UnixStream::pair().unwrap();
        let budget = Arc::new(Budget::new(FdStream::new(ours.into()).unwrap().liveness()));
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
