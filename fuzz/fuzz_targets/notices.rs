//! What a guest pushes to the host in place of its agent's notices, in any pieces.
//!
//! However it is divided, the same notices come of it, what is held is bounded, and what is shown to people is plain
//! text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_protocol::notice::{MAX_LINE, Notice, NoticeReader};

/// All notices up to the first that is none, and whether there is one.
fn read(bytes: &[u8], piece: usize) -> (Vec<Notice>, bool) {
    let mut reader = NoticeReader::default();
    let mut notices = Vec::new();
    for piece in bytes.chunks(piece) {
        match reader.push(piece) {
            Ok(more) => notices.extend(more),
            Err(_) => return (notices, true),
        }
    }
    (notices, false)
}

fuzz_target!(|input: &[u8]| {
    let Some((&piece, bytes)) = input.split_first() else {
        return;
    };
    let byte_by_byte = read(bytes, 1);
    for notice in &byte_by_byte.0 {
        let line = notice.to_line();
        assert!(line.len() <= MAX_LINE);
        assert_eq!(
            &Notice::parse(line.as_bytes()).expect("a notice survives its line"),
            notice
        );
        if let Notice::Ready { agent, .. } = notice {
            assert!(agent.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
    let in_pieces = read(bytes, usize::from(piece) + 1);
    assert_eq!(in_pieces.1, byte_by_byte.1);
    // A piece with a bad line gives nothing of what came before it in the same piece.
    assert!(byte_by_byte.0.starts_with(&in_pieces.0));
    assert!(in_pieces.1 || in_pieces.0.len() == byte_by_byte.0.len());
});
