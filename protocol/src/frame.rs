//! Frames, in which the messages of our subsystems travel: the length of what follows, one byte of kind, and fields in SSH's
//! own encoding (RFC 4251, 5): integers with the high byte first, strings with their length in front, a boolean as one byte.

pub use crate::wire::Malformed;

/// The most bytes of a frame after its length.
pub const MAX_FRAME: usize = 1 << 20;

/// A frame is longer than any message, or empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a frame of {0} bytes came, where at least 1 and at most {MAX_FRAME} are")]
pub struct FrameLength(pub u32);

/// Received bytes that are not taken yet. Holds less than one frame between calls, however much its peer claims.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    start: usize,
}

impl Frames {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, without its length.
    ///
    /// # Errors
    /// When its length is none; nothing after it can be told apart any more.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameLength> {
        let Some((length, rest)) = self.buffer[self.start..].split_first_chunk() else {
            return Ok(None);
        };
        let length = check(u32::from_be_bytes(*length))?;
        if rest.len() < length {
            return Ok(None);
        }
        let from = self.start + 4;
        self.start = from + length;
        Ok(Some(&self.buffer[from..self.start]))
    }

    /// Whether nothing is left over.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }
}

/// The length of a frame, if it may be one.
///
/// # Errors
/// When it is none.
pub fn check(length: u32) -> Result<usize, FrameLength> {
    usize::try_from(length)
        .ok()
        .filter(|length| (1..=MAX_FRAME).contains(length))
        .ok_or(FrameLength(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_the_same_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cut in 1_usize..17,
        ) {
            let mut stream = Vec::new();
            for frame in &frames {
                stream.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
                stream.extend(frame);
            }
            let (mut received, mut got) = (Frames::default(), Vec::new());
            for piece in stream.chunks(cut) {
                received.push(piece);
                while let Some(frame) = received.next_frame().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(received.is_empty());
        }
    }

    #[test]
    fn a_lying_length_is_refused_before_its_bytes_come() {
        for length in [0, u32::try_from(MAX_FRAME).unwrap() + 1, u32::MAX] {
            let mut frames = Frames::default();
            frames.push(&length.to_be_bytes());
            assert_eq!(frames.next_frame(), Err(FrameLength(length)));
        }
    }
}
