//! Runs in a guest: dials a vsock port of the guest's own, as a program in it would, and says what was heard there.
//!
//! `dial PORT` tries the address that means the guest itself and the guest's own one.

use std::io::{Read, Write};
use std::time::Duration;

use vsock::{VMADDR_CID_LOCAL, VsockStream, get_local_cid};

/// Bytes heard from `port` at `cid`, after something was said.
fn heard(cid: u32, port: u32) -> usize {
    let Ok(mut stream) = VsockStream::connect_with_cid_port(cid, port) else {
        return 0;
    };
    // A frame that is no preamble, which the host would have an answer to.
    let _ = stream.write_all(&[0, 0, 0, 1, 0]);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    stream.read(&mut [0; 64]).unwrap_or(0)
}

fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let port = port.expect("usage: dial PORT");
    let cids = [VMADDR_CID_LOCAL, get_local_cid().expect("the guest has a vsock device")];
    let heard: usize = cids.iter().map(|cid| heard(*cid, port)).sum();
    println!("tried {}\nheard {heard}", cids.len());
}
