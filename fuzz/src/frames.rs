//! Frames of a subsystem that arrive in pieces.

use msb_protocol::frame::Frames;

/// Calls `each` with every frame of `input`, whose first byte says how long the pieces are in which the rest arrives, up to
/// the first that is none.
pub fn each_frame(input: &[u8], mut each: impl FnMut(&[u8])) {
    let Some((&piece, bytes)) = input.split_first() else {
        return;
    };
    let mut frames = Frames::default();
    for piece in bytes.chunks(usize::from(piece) + 1) {
        frames.push(piece);
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => each(frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
