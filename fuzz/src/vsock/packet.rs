//! Packets (virtio 1.2, section 5.10.6), written down a second time so that the device's own idea of them is tested.

/// The guest.
pub const GUEST_CID: u64 = 3;
/// The host.
pub const HOST_CID: u64 = 2;
/// Bytes of a header.
pub const HEADER: usize = 44;
/// Stream sockets.
const STREAM: u16 = 1;

/// The sender receives no more.
pub const SHUT_RCV: u32 = 1;
/// The sender sends no more.
pub const SHUT_SEND: u32 = 2;
/// Both.
pub const SHUT_BOTH: u32 = 3;

/// What a packet asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    Request = 1,
    Response = 2,
    Rst = 3,
    Shutdown = 4,
    Rw = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

/// What identifies a connection: the port of the host and the guest's.
pub type Key = (u32, u32);

/// A packet with its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// What the header says of the payload's length.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet of the guest for the connection `key`, with plenty of credit.
    pub fn from_guest((host_port, guest_port): Key, op: u16) -> Self {
        Self {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
            payload: Vec::new(),
        }
    }

    /// The guest's answer to a packet.
    pub fn answer(to: &Self, op: Op) -> Self {
        Self::from_guest(to.key(), op as u16)
    }

    /// The connection that a packet of the host is about.
    pub fn key(&self) -> Key {
        (self.src_port, self.dst_port)
    }

    /// The header's wire form.
    pub fn header(&self) -> Vec<u8> {
        [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ]
        .concat()
    }

    /// Reads what the device wrote: a header for this guest, and exactly as many bytes as it says.
    pub fn from_device(bytes: &[u8]) -> Self {
        assert!(bytes.len() >= HEADER, "a packet of {} bytes", bytes.len());
        let long = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let wide = |at: usize| u64::from(long(at)) | u64::from(long(at + 4)) << 32;
        let packet = Self {
            src_cid: wide(0),
            dst_cid: wide(8),
            src_port: long(16),
            dst_port: long(20),
            len: long(24),
            kind: word(28),
            op: word(30),
            flags: long(32),
            buf_alloc: long(36),
            fwd_cnt: long(40),
            payload: bytes[HEADER..].to_vec(),
        };
        assert_eq!(packet.len as usize, packet.payload.len(), "{packet:?}");
        assert_eq!(packet.dst_cid, GUEST_CID, "{packet:?}");
        packet
    }

    /// Whether it is from this guest to a stream of the host.
    pub fn is_for_stream(&self) -> bool {
        (self.src_cid, self.dst_cid, self.kind) == (GUEST_CID, HOST_CID, STREAM)
    }

    /// Whether it is from a stream of the host.
    pub fn is_stream(&self) -> bool {
        self.src_cid == HOST_CID && self.kind == STREAM
    }
}
