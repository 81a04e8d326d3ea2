//! Recent output: a bounded queue in which every client has a place of its own.

use std::collections::VecDeque;

/// The largest piece, in bytes: a trickle fills one instead of making many.
const PIECE: usize = 32 << 10;

/// The last bytes that a process printed, on which stream each came, and how many came before them.
#[derive(Debug)]
pub(super) struct History {
    pieces: VecDeque<Piece>,
    limit: u64,
    end: u64,
}

#[derive(Debug)]
struct Piece {
    is_error: bool,
    /// The position of its first byte.
    start: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + length(&self.bytes)
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl History {
    /// One that keeps at least `limit` bytes, and no more than a piece beyond.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            pieces: VecDeque::new(),
            limit,
            end: 0,
        }
    }

    /// How many bytes were ever printed.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The position of the oldest byte that is kept.
    pub(super) fn start(&self) -> u64 {
        self.pieces.front().map_or(self.end, |piece| piece.start)
    }

    /// Whether more may be printed before the client at `held` has taken more.
    pub(super) fn has_room(&self, held: Option<u64>) -> bool {
        held.is_none_or(|held| self.end.saturating_sub(held) < self.limit)
    }

    /// Adds output, and drops the oldest that is over the limit and before `held`.
    pub(super) fn push(&mut self, is_error: bool, bytes: &[u8], held: Option<u64>) {
        match self.pieces.back_mut() {
            Some(last) if last.is_error == is_error && last.bytes.len() + bytes.len() <= PIECE => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => self.pieces.push_back(Piece {
                is_error,
                start: self.end,
                bytes: bytes.to_vec(),
            }),
        }
        self.end += length(bytes);
        self.trim(held);
    }

    /// Drops the oldest pieces that are over the limit and before `held`.
    pub(super) fn trim(&mut self, held: Option<u64>) {
        let held = held.unwrap_or(self.end);
        while let Some(oldest) = self.pieces.front() {
            let kept_without = self.end - oldest.end();
            if kept_without < self.limit || oldest.end() > held {
                return;
            }
            self.pieces.pop_front();
        }
    }

    /// The output at `position` and its stream, as far as it is in one piece.
    pub(super) fn at(&self, position: u64) -> Option<(bool, &[u8])> {
        let index = self.pieces.partition_point(|piece| piece.end() <= position);
        let piece = self.pieces.get(index)?;
        let offset = usize::try_from(position.checked_sub(piece.start)?).ok()?;
        Some((piece.is_error, &piece.bytes[offset..]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(history: &History, mut position: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some((_, piece)) = history.at(position) {
            bytes.extend_from_slice(piece);
            position += length(piece);
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_is_kept_is_the_end_of_what_was_printed_and_bounded(
            pieces in prop::collection::vec((any::<bool>(), 1_usize..20_000), 1..60),
            limit in 4096_u64..100_000,
        ) {
            let mut history = History::new(limit);
            let mut printed = Vec::new();
            for (index, &(is_error, size)) in pieces.iter().enumerate() {
                let bytes = vec![u8::try_from(index).unwrap(); size];
                history.push(is_error, &bytes, None);
                printed.extend(bytes);
            }
            let kept = read(&history, history.start());
            prop_assert!(printed.ends_with(&kept));
            prop_assert!(length(&kept) >= limit.min(length(&printed)));
            prop_assert!(length(&kept) < limit + length(&[0; PIECE]));
            prop_assert_eq!(history.end(), length(&printed));
        }

        #[test]
        fn nothing_goes_that_is_held(
            pieces in prop::collection::vec(1_usize..20_000, 1..60),
            held in 0_u64..50_000,
        ) {
            let mut history = History::new(4096);
            let mut printed = Vec::new();
            for (index, &size) in pieces.iter().enumerate() {
                let bytes = vec![u8::try_from(index).unwrap(); size];
                history.push(false, &bytes, Some(held));
                printed.extend(bytes);
            }
            if let Some(rest) = usize::try_from(held).ok().and_then(|held| printed.get(held..)) {
                prop_assert!(read(&history, held) == rest);
            }
        }
    }

    #[test]
    fn a_trickle_takes_few_pieces() {
        let mut history = History::new(1 << 20);
        for _ in 0..10_000 {
            history.push(false, b"x", None);
        }
        assert_eq!(history.pieces.len(), 1);
    }

    #[test]
    fn streams_are_told_apart() {
        let mut history = History::new(4096);
        history.push(false, b"out", None);
        history.push(true, b"error", None);
        assert_eq!(history.at(1), Some((false, b"ut".as_slice())));
        assert_eq!(history.at(3), Some((true, b"error".as_slice())));
        assert_eq!(history.at(8), None);
    }

    #[test]
    fn a_process_waits_for_whom_it_is_held_for() {
        let mut history = History::new(4096);
        history.push(false, &[0; 4096], Some(0));
        assert!(!history.has_room(Some(0)));
        assert!(history.has_room(Some(1)) && history.has_room(None));
    }
}
