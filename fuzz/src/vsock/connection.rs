//! What guest and host may expect of one connection.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use super::bench::BUFFER_SIZE;
use super::packet::{Key, Op, Packet, SHUT_BOTH, SHUT_RCV, SHUT_SEND};

/// The guest's side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A client of the host waits; the guest has not accepted.
    Waiting,
    /// The guest has asked; the device's `RESPONSE` has not come.
    Asked,
    /// Both sides know of it.
    Open,
    /// Over for the guest.
    Over,
}

/// One connection, whichever side opened it.
#[derive(Debug)]
pub struct Connection {
    /// Tells its bytes from those of others.
    seed: u64,
    pub key: Option<Key>,
    pub phase: Phase,
    pub host: Option<UnixStream>,
    /// The host writes no more.
    host_ended: bool,
    /// The host has seen the end of the stream.
    pub at_eof: bool,
    /// The answer to the client's `CONNECT`, as far as it was read.
    answer: Vec<u8>,

    /// Guest to host: what the guest sent within its rights, and what the host has read of it.
    guest_sent: u64,
    host_read: u64,
    /// Host to guest.
    host_written: u64,
    guest_received: u64,

    /// What the guest granted in its latest packet, and claimed to have taken.
    granted: u32,
    claimed: u32,
    /// What the device last said it took.
    device_taken: u32,
    /// `SHUTDOWN` flags in each direction.
    pub guest_shut: u32,
    device_shut: u32,
}

impl Connection {
    /// A connection with nothing sent.
    pub fn new(seed: u64, phase: Phase, key: Option<Key>, host: Option<UnixStream>) -> Self {
        Self {
            seed,
            key,
            phase,
            host,
            host_ended: false,
            at_eof: false,
            answer: Vec::new(),
            guest_sent: 0,
            host_read: 0,
            host_written: 0,
            guest_received: 0,
            granted: 0,
            claimed: 0,
            device_taken: 0,
            guest_shut: 0,
            device_shut: 0,
        }
    }

    /// Whether packets of the guest reach it.
    pub fn is_named(&self) -> bool {
        matches!(self.phase, Phase::Asked | Phase::Open)
    }

    /// Whether the device may wait for nothing but the guest's consent to the end.
    pub fn may_be_closing(&self) -> bool {
        let to_host_over = self.host.is_none() || self.guest_shut & SHUT_SEND != 0;
        to_host_over && (self.host_ended || self.guest_shut & SHUT_RCV != 0)
    }

    /// The guest's room for the host's data, as the device must count it.
    fn credit(&self) -> u32 {
        let received = self.guest_received as u32;
        self.granted.saturating_sub(received.wrapping_sub(self.claimed))
    }

    /// The device's room for the guest's data, as far as the guest knows.
    pub fn room(&self) -> u32 {
        BUFFER_SIZE - (self.guest_sent as u32).wrapping_sub(self.device_taken)
    }

    // What the guest does.

    /// Fills in the credit fields of a packet that the guest sends.
    pub fn grant(&mut self, packet: &mut Packet, granted: u32, claimed: Option<u32>) {
        self.granted = granted;
        self.claimed = claimed.unwrap_or(self.guest_received as u32);
        packet.buf_alloc = self.granted;
        packet.fwd_cnt = self.claimed;
    }

    /// The next `len` bytes from the guest.
    pub fn guest_data(&self, len: usize) -> Vec<u8> {
        self.bytes(0, self.guest_sent, len)
    }

    /// The guest sent `len` of those bytes, as it may.
    pub fn guest_sent(&mut self, len: usize) {
        self.guest_sent += len as u64;
    }

    // What the host does.

    /// Writes up to `len` bytes.
    pub fn host_writes(&mut self, len: usize) {
        let data = self.bytes(1, self.host_written, len);
        let Some(host) = &mut self.host else { return };
        if self.host_ended {
            return;
        }
        match host.write(&data) {
            Ok(written) => self.host_written += written as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                let may_fail = self.guest_shut & SHUT_RCV != 0 || self.phase == Phase::Over || self.at_eof;
                assert!(
                    may_fail || self.phase == Phase::Waiting,
                    "the host cannot write: {error}"
                );
            }
        }
    }

    /// Reads up to `limit` bytes; the first line is the answer to `CONNECT` if the host asked. Returns how many came.
    pub fn host_reads(&mut self, limit: usize) -> usize {
        let mut buffer = vec![0; limit];
        let Some(host) = &mut self.host else { return 0 };
        if self.phase == Phase::Waiting && self.key.is_none() {
            return self.read_answer();
        }
        match host.read(&mut buffer) {
            Ok(0) if limit > 0 => {
                self.at_eof = true;
                let may_end = self.guest_shut & SHUT_SEND != 0 || self.phase == Phase::Over;
                assert!(may_end, "the host's stream ended: {self:?}");
                assert_eq!(self.host_read, self.guest_sent, "bytes of the guest are lost: {self:?}");
                0
            }
            Ok(read) => {
                let expected = self.bytes(0, self.host_read, read);
                assert!(
                    buffer[..read] == expected,
                    "the host reads other bytes than the guest sent"
                );
                self.host_read += read as u64;
                assert!(
                    self.host_read <= self.guest_sent,
                    "the host reads more than the guest sent"
                );
                read
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{self:?}");
                0
            }
        }
    }

    /// Reads the answer to `CONNECT` byte by byte, for data may follow it.
    fn read_answer(&mut self) -> usize {
        let Some(host) = &mut self.host else { return 0 };
        let mut byte = [0];
        let mut count = 0;
        while self.answer.last() != Some(&b'\n') {
            match host.read(&mut byte) {
                Ok(0) => {
                    self.at_eof = true;
                    self.phase = Phase::Over;
                    break;
                }
                Ok(_) => self.answer.push(byte[0]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
            count += 1;
        }
        count
    }

    /// The port of a whole `OK` line that has come.
    pub fn answered(&mut self) -> Option<u32> {
        self.read_answer();
        let line = std::str::from_utf8(&self.answer).expect("an answer is text");
        let port = line.strip_suffix('\n')?.strip_prefix("OK ");
        Some(port.expect("the answer is OK").parse().expect("the answer has a port"))
    }

    /// The host writes no more.
    pub fn host_half_closes(&mut self) {
        if let Some(host) = &self.host {
            let _ = host.shutdown(Shutdown::Write);
            self.host_ended = true;
        }
    }

    /// The host end goes.
    pub fn host_closes(&mut self) {
        self.host = None;
        self.host_ended = true;
    }

    // What the device says to the guest.

    /// Takes a packet other than `REQUEST` and `RST`.
    pub fn on_packet(&mut self, packet: &Packet) {
        let taken_more = packet.fwd_cnt.wrapping_sub(self.device_taken);
        let outstanding = (self.guest_sent as u32).wrapping_sub(self.device_taken);
        assert!(
            taken_more <= outstanding,
            "the device took more than it was sent: {packet:?} {self:?}"
        );
        assert_eq!(packet.buf_alloc, BUFFER_SIZE);
        self.device_taken = packet.fwd_cnt;
        if packet.op == Op::Response as u16 {
            assert_eq!(self.phase, Phase::Asked, "{packet:?}");
            self.phase = Phase::Open;
            return;
        }
        assert_eq!(self.phase, Phase::Open, "{packet:?}");
        if packet.op == Op::Rw as u16 {
            self.on_data(packet);
        } else if packet.op == Op::Shutdown as u16 {
            self.on_shutdown(packet.flags);
        } else if packet.op == Op::CreditRequest as u16 {
            assert_eq!(self.credit(), 0, "the device asks for credit that it has: {self:?}");
        } else {
            assert_eq!(packet.op, Op::CreditUpdate as u16);
        }
    }

    fn on_data(&mut self, packet: &Packet) {
        assert!(
            packet.len > 0 && packet.len <= self.credit(),
            "{packet:?} beyond the guest's credit: {self:?}"
        );
        assert_eq!(self.device_shut & SHUT_SEND, 0, "data behind its end");
        assert_eq!(self.guest_shut & SHUT_RCV, 0, "data for a guest that receives no more");
        let expected = self.bytes(1, self.guest_received, packet.payload.len());
        assert!(
            packet.payload == expected,
            "the guest reads other bytes than the host wrote"
        );
        self.guest_received += u64::from(packet.len);
        assert!(
            self.guest_received <= self.host_written,
            "the guest reads more than the host wrote"
        );
    }

    fn on_shutdown(&mut self, flags: u32) {
        assert_eq!(flags & !SHUT_BOTH, 0);
        assert!(
            flags & self.device_shut == self.device_shut && flags != self.device_shut,
            "{flags} {self:?}"
        );
        self.device_shut = flags;
        if flags & SHUT_SEND != 0 && self.guest_shut & SHUT_RCV == 0 {
            assert!(self.host_ended, "an end that the host did not make: {self:?}");
            assert_eq!(
                self.guest_received, self.host_written,
                "bytes of the host are lost: {self:?}"
            );
        }
        if flags & SHUT_RCV != 0 {
            assert!(
                self.host.is_none() || self.guest_shut & SHUT_SEND != 0,
                "the host still reads: {self:?}"
            );
        }
    }

    /// When nothing can happen any more: everything sent has arrived, and every end was passed on.
    pub fn assert_complete(&self) {
        if self.host.is_some() && self.phase != Phase::Waiting {
            assert_eq!(
                self.host_read, self.guest_sent,
                "bytes of the guest are stuck: {self:?}"
            );
            let ends = self.guest_shut & SHUT_SEND != 0 || self.phase == Phase::Over;
            assert_eq!(self.at_eof, ends, "{self:?}");
        }
        if self.phase == Phase::Open && self.guest_shut & SHUT_RCV == 0 {
            assert_eq!(
                self.guest_received, self.host_written,
                "bytes of the host are stuck: {self:?}"
            );
            assert_eq!(self.device_shut & SHUT_SEND != 0, self.host_ended, "{self:?}");
        }
    }

    /// Bytes of one direction from a position on: such that a lost, doubled or foreign one shows.
    fn bytes(&self, direction: u64, from: u64, len: usize) -> Vec<u8> {
        let start = (from + self.seed * 1009 + direction * 30_011) % PERIOD as u64;
        let first = &NOISE[start as usize..];
        let mut noise = first[..len.min(first.len())].to_vec();
        while noise.len() < len {
            noise.extend_from_slice(&NOISE);
        }
        noise.truncate(len);
        noise
    }
}

/// A prime: no length of a packet or buffer hides a loss.
const PERIOD: usize = 65_521;

/// Bytes without a pattern.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..PERIOD).map(|_| next()).collect()
});
