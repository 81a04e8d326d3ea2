//! Frames of the subsystem that manages processes, as either end reads them.
//!
//! Whatever is understood survives being written again, and a frame is no longer than its length may say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_protocol::frame::Frames;
use msb_protocol::process::{Reply, Request};

fuzz_target!(|input: &[u8]| {
    let Some((&piece, bytes)) = input.split_first() else {
        return;
    };
    let mut frames = Frames::default();
    for piece in bytes.chunks(usize::from(piece) + 1) {
        frames.push(piece);
        loop {
            let frame = match frames.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return,
            };
            if let Ok(request) = Request::decode(frame) {
                let mut again = Vec::new();
                request.encode(&mut again);
                assert_eq!(Request::decode(&again[4..]).expect("it was written by us"), request);
            }
            if let Ok(reply) = Reply::decode(frame) {
                let mut again = Vec::new();
                reply.encode(&mut again);
                assert_eq!(Reply::decode(&again[4..]).expect("it was written by us"), reply);
            }
        }
    }
});
