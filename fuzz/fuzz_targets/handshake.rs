//! The line with which a client of the vsock socket says where it wants to go, in any pieces.
//!
//! A line that means something opens a connection to its port, and not a byte behind it is lost; any other ends the
//! stream.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use libfuzzer_sys::fuzz_target;
use msb_fuzz::Input;
use msb_fuzz::vsock::{Bench, Op, Packet};

/// What Firecracker reads at most, the newline included.
const MAX_LINE: usize = 32;

#[derive(Debug, PartialEq)]
enum Outcome {
    /// Nothing is known yet.
    Waits,
    Refused,
    /// A port, and where the data behind the line begins.
    Connects(u32, usize),
}

fn expected(sent: &[u8], ended: bool) -> Outcome {
    let line = &sent[..sent.len().min(MAX_LINE)];
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => match port(&line[..end]) {
            Some(port) => Outcome::Connects(port, end + 1),
            None => Outcome::Refused,
        },
        None if ended || line.len() == MAX_LINE => Outcome::Refused,
        None => Outcome::Waits,
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let is_space = |byte: &u8| b" \t\r\x0c\n".contains(byte);
    let words: Vec<&[u8]> = line.split(is_space).filter(|word| !word.is_empty()).collect();
    let [connect, digits] = words.as_slice() else {
        return None;
    };
    if !connect.eq_ignore_ascii_case(b"connect") || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().try_fold(0u64, |value, digit| {
        Some(value * 10 + u64::from(digit - b'0')).filter(|value| *value <= u32::MAX.into())
    })?;
    u32::try_from(value).ok()
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut bench = Bench::new();
    let mut client = bench.client();
    let pieces = 1 + input.byte() % 4;
    let ends = input.byte() & 1 == 1;
    let mut sent = Vec::new();
    for piece in 0..pieces {
        let count = if piece + 1 == pieces {
            usize::MAX
        } else {
            input.byte().into()
        };
        let bytes = input.take(count);
        // A refused client finds its stream closed.
        let written = client.write(bytes).unwrap_or(0);
        sent.extend_from_slice(&bytes[..written]);
        bench.settle();
    }
    if ends {
        let _ = client.shutdown(Shutdown::Write);
    }
    bench.settle();

    let packets = bench.receive();
    let mut answer = [0; 64];
    match expected(&sent, ends) {
        Outcome::Waits => {
            assert_eq!(packets, []);
            assert_eq!(client.read(&mut answer).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        Outcome::Refused => {
            assert_eq!(packets, []);
            assert_eq!(client.read(&mut answer).expect("the end of the stream"), 0);
        }
        Outcome::Connects(port, data_at) => {
            let [request] = packets.as_slice() else {
                panic!("{packets:?} instead of one request")
            };
            assert_eq!((request.op, request.dst_port), (Op::Request as u16, port));
            bench.send(&Packet::answer(request, Op::Response), &[]);
            let ok = format!("OK {}\n", request.src_port);
            let read = client.read(&mut answer).expect("the answer");
            assert_eq!(answer[..read], *ok.as_bytes());
            let mut data = Vec::new();
            for packet in bench.receive() {
                if packet.op == Op::Rw as u16 {
                    data.extend_from_slice(&packet.payload);
                }
            }
            assert_eq!(data, sent[data_at..]);
        }
    }
});
