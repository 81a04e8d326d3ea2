//! Copying one stream, with a count that others can wait for.

use std::io::{self, Read, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

const CHUNK: usize = 64 << 10;

/// How far a stream is, shared between its pump and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    bytes: u64,
    end: Option<End>,
}

/// Why a pump ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Its source has no more.
    Source,
    /// Its sink takes no more.
    Sink,
}

impl Progress {
    /// Waits until `bytes` have passed or the pump has ended. Says whether nothing is missing: all have passed, or the
    /// sink wanted no more.
    pub(crate) fn wait_for(&self, bytes: u64) -> bool {
        let unfinished = |state: &mut State| state.bytes < bytes && state.end.is_none();
        let state = self
            .changed
            .wait_while(self.lock(), unfinished)
            .unwrap_or_else(PoisonError::into_inner);
        state.bytes >= bytes || state.end == Some(End::Sink)
    }

    /// The bytes that have passed.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// Passes what `from` gives to `to` until either ends, and counts what `to` took.
pub(crate) fn pump(mut from: impl Read, mut to: impl Write, progress: &Progress) -> End {
    let mut buffer = vec![0; CHUNK];
    let end = loop {
        match from.read(&mut buffer) {
            Ok(0) => break End::Source,
            Ok(length) => {
                if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
                    break End::Sink;
                }
                progress.update(|state| state.bytes += length as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break End::Source,
        }
    };
    progress.update(|state| state.end = Some(end));
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_bytes_pass_and_are_counted() {
        let sent: Vec<u8> = (0..=250).cycle().take(CHUNK * 3 + 1).collect();
        let (progress, mut received) = (Progress::default(), Vec::new());

        let end = pump(sent.as_slice(), &mut received, &progress);

        assert_eq!(end, End::Source);
        assert_eq!(received, sent);
        assert_eq!(progress.bytes(), sent.len() as u64);
    }

    #[test]
    fn waiting_for_more_than_comes_ends_with_the_source() {
        let progress = Progress::default();

        pump(&b"four"[..], io::sink(), &progress);

        assert!(progress.wait_for(4));
        assert!(!progress.wait_for(5));
    }

    #[test]
    fn nothing_is_missing_when_the_sink_wants_no_more() {
        let progress = Progress::default();

        let end = pump(&[0; CHUNK * 2][..], Closed, &progress);

        assert_eq!(end, End::Sink);
        assert_eq!(progress.bytes(), 0);
        assert!(progress.wait_for(CHUNK as u64 * 2));
    }
}
