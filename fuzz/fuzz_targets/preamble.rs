//! What comes ahead of the connection of a prepared endpoint, as the agent and the host read it: what is understood survives
//! being written again, and no part of it is a whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::frames::each_frame;
use msb_protocol::frame::MAX_FRAME;
use msb_protocol::server_preamble::{Answer, Preamble, ServerOptions};

fuzz_target!(|input: &[u8]| each_frame(input, |frame| {
    if let Ok(preamble) = Preamble::from_frame(frame) {
        let again = preamble.to_frame();
        assert!(again[4..] == *frame && again.len() <= MAX_FRAME + 4);
        for end in [0, 1, frame.len() / 2, frame.len() - 1] {
            assert!(Preamble::from_frame(&frame[..end]).is_err());
        }
        if let Ok(options) = ServerOptions::from_message(&preamble.options) {
            assert!(*options.to_message() == *preamble.options);
        }
    }
    if let Ok(answer) = Answer::from_frame(frame) {
        assert!(answer.to_frame()[4..] == *frame);
    }
}));
