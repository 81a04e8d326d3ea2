//! FUSE messages (linux/fuse.h), and the server's end of a file system device's socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use msb_vmm::FileSystemConfig;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// Requests without an answer.
pub const FORGET: u32 = 2;
pub const BATCH_FORGET: u32 = 42;

/// The other operations.
pub mod operation {
    pub const LOOKUP: u32 = 1;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const FALLOCATE: u32 = 43;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
}

/// Bytes of the header of a request, and of that of an answer.
pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;

/// A request that is true about its length.
pub fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let length = (IN_HEADER + body.len()) as u32;
    let mut request = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
    request.extend(unique.to_le_bytes());
    request.extend(node.to_le_bytes());
    request.resize(IN_HEADER, 0);
    request.extend(body);
    request
}

/// An answer that is true about its length.
pub fn answer(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let length = (OUT_HEADER + body.len()) as u32;
    let mut answer = [length.to_le_bytes(), error.to_le_bytes()].concat();
    answer.extend(unique.to_le_bytes());
    answer.extend(body);
    answer
}

/// Four bytes of a message, or zero behind its end.
pub fn word(message: &[u8], at: usize) -> u32 {
    let word = message.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u32::from_le_bytes(*word))
}

/// Eight bytes of a message, or zero behind its end.
pub fn long(message: &[u8], at: usize) -> u64 {
    u64::from(word(message, at)) | u64::from(word(message, at + 4)) << 32
}

/// What is asked by a request.
pub fn opcode(request: &[u8]) -> u32 {
    word(request, 4)
}

/// The number of a request or an answer.
pub fn unique(message: &[u8]) -> u64 {
    long(message, 8)
}

/// The other end of a device's socket. It never blocks.
pub struct Server {
    socket: Option<OwnedFd>,
}

impl Server {
    /// A server, and what a device is made of that reaches it.
    pub fn new() -> (Self, FileSystemConfig) {
        let (theirs, ours) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).expect("sockets");
        let config = FileSystemConfig {
            tag: "fuzz".into(),
            socket: Arc::new(theirs),
        };
        (Self { socket: Some(ours) }, config)
    }

    /// The next message from the device.
    pub fn hear(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 18];
        let (length, _) = recv(self.socket.as_ref()?, &mut *buffer, RecvFlags::empty()).ok()?;
        buffer.truncate(length);
        (length > 0).then_some(buffer)
    }

    /// Says something, if there is room for it.
    pub fn say(&self, message: &[u8]) {
        if let Some(socket) = &self.socket {
            let _ = send(socket, message, SendFlags::NOSIGNAL);
        }
    }

    /// It is gone.
    pub fn go(&mut self) {
        self.socket = None;
    }
}
