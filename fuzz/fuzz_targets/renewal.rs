//! What a restored guest is told in place of who it is from now on.
//!
//! Nothing is read beyond the message, what is understood survives being written again, and no part of it is a message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_protocol::renewal::{MAX_LENGTH, Renewal};

fuzz_target!(|input: &[u8]| {
    let Some((&is_whole, bytes)) = input.split_first() else {
        return;
    };
    // Its length is made right most of the time: it would keep everything else from being reached.
    let mut message = bytes.to_vec();
    if is_whole & 7 != 0 {
        let length = u32::try_from(bytes.len()).expect("an input is short");
        message.splice(0..0, length.to_le_bytes());
    }
    let mut source = &message[..];
    let Ok(renewal) = Renewal::read(&mut source) else {
        return;
    };
    let read = message.len() - source.len();
    assert!(read <= MAX_LENGTH + 4);
    for end in [0, 3, 4, read - 1] {
        assert!(Renewal::read(&message[..end]).is_err());
    }
    let again = renewal.to_message().expect("it is as short as it was");
    assert_eq!(Renewal::read(&again[..]).expect("it was written by us"), renewal);
});
