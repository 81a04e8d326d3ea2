//! Frames of the subsystem that manages processes, as either end reads them.
//!
//! Whatever is understood survives being written again, and a frame is no longer than its length may say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::frames::each_frame;
use msb_protocol::process::{Reply, Request};

fuzz_target!(|input: &[u8]| {
    each_frame(input, |frame| {
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
    });
});
