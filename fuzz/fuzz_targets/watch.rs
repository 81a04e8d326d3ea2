//! Frames of the subsystem that tells what changes in a directory, as either end reads them.
//!
//! Whatever is understood is written again as it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::frames::each_frame;
use msb_protocol::watch::{Reply, Request};

fuzz_target!(|input: &[u8]| {
    each_frame(input, |frame| {
        let mut again = Vec::new();
        if let Ok(request) = Request::decode(frame) {
            request.encode(&mut again);
        } else if let Ok(reply) = Reply::decode(frame) {
            reply.encode(&mut again);
        } else {
            return;
        }
        assert_eq!(&again[4..], frame);
    });
});
