//! The device, a driver on plain guest memory, and the Unix sockets of the host.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use msb_vmm::devices::virtio::vsock::Vsock;
use msb_vmm::memory::GuestMemory;
use msb_vmm::{HoldPolicy, VsockConfig, VsockLimits};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::packet::{GUEST_CID, HEADER, Packet};
use crate::machine::Machine;
use crate::ring::{Descriptor, NEXT, Ring, WRITE};

/// Connections at once.
pub const MAX_CONNECTIONS: u16 = 4;
/// Clients at once in their handshake.
const MAX_HANDSHAKES: u16 = 2;
/// What the device holds of a connection that its host end does not read.
pub const BUFFER_SIZE: u32 = 8192;
/// The port of the host on which somebody listens.
pub const HOST_PORT: u32 = 1024;

/// Nothing happens for want of time: what a test sees follows from its input alone.
const NEVER: Duration = Duration::from_secs(24 * 3600);

const RX: u64 = 0x1000;
const TX: u64 = 0x2000;
const EVENT: u64 = 0x3000;
const RX_RING: u16 = 16;
const TX_RING: u16 = 4;
const RX_BUFFERS: u64 = 0x1_0000;
const RX_BUFFER: u64 = 0x1000;
const TX_BUFFER: u64 = 0x2_0000;
const MEMORY: usize = 0x4_0000;

/// The device and both its sides.
pub struct Bench {
    machine: Machine,
    memory: GuestMemory,
    rx: Ring,
    tx: Ring,
    /// Receive buffers that the driver has taken and not given back.
    taken: Vec<u16>,
    /// Bytes of a receive buffer.
    rx_len: u32,
    listener: UnixListener,
    directory: TempDir,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// A started device with all receive buffers.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = VsockConfig::new(GUEST_CID as u32, directory.path().join("v.sock"));
        config.limits = VsockLimits {
            max_connections: MAX_CONNECTIONS,
            max_handshakes: MAX_HANDSHAKES,
            buffer_size: BUFFER_SIZE,
            handshake_timeout: NEVER,
            close_timeout: NEVER,
            hold: HoldPolicy {
                booting: NEVER,
                ready: NEVER,
                first_retry: NEVER,
                max_retry: NEVER,
            },
        };
        let listener = UnixListener::bind(directory.path().join(format!("v.sock_{HOST_PORT}"))).expect("a listener");
        listener.set_nonblocking(true).expect("a listener");
        let memory = Machine::memory(MEMORY);
        let mut machine = Machine::new(memory.clone());
        machine.attach(Vsock::new(config).expect("vsock"));
        let mut bench = Self {
            machine,
            rx: Ring::new(&memory, RX, RX_RING),
            tx: Ring::new(&memory, TX, TX_RING),
            memory,
            taken: Vec::new(),
            rx_len: RX_BUFFER as u32,
            listener,
            directory,
        };
        bench.restart();
        bench
    }

    /// The driver resets the device and starts it again.
    pub fn restart(&mut self) {
        self.rx = Ring::new(&self.memory, RX, RX_RING);
        self.tx = Ring::new(&self.memory, TX, TX_RING);
        let event = Ring::new(&self.memory, EVENT, TX_RING);
        self.machine.start(0, &[self.rx.clone(), self.tx.clone(), event], 0);
        assert_eq!(self.machine.status(0), 15, "the device starts");
        self.taken = (0..RX_RING).collect();
        self.give_buffers(RX_RING.into());
        self.settle();
    }

    /// Receive buffers are of `len` bytes from the next one on, a header and at least one byte.
    pub fn set_rx_len(&mut self, len: u32) {
        self.rx_len = len.clamp(HEADER as u32 + 1, RX_BUFFER as u32);
    }

    /// Gives the device as many receive buffers as the driver has, `count` at most.
    pub fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let Some(index) = self.taken.pop() else { break };
            let descriptor = Descriptor {
                addr: RX_BUFFERS + u64::from(index) * RX_BUFFER,
                len: self.rx_len,
                flags: WRITE,
                next: 0,
            };
            self.rx.describe(&self.memory, index, descriptor);
            self.rx.publish(&self.memory, index);
        }
        self.machine.kick(0, 0);
    }

    /// Whether the device could say more if it had more to say.
    pub fn has_buffers(&self) -> bool {
        self.taken.len() < RX_RING.into()
    }

    /// Takes the packets that the device has written.
    pub fn receive(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some((index, len)) = self.rx.pop_used(&self.memory) {
            assert!(len <= RX_BUFFER as u32, "a packet of {len} bytes");
            let mut bytes = vec![0; len as usize];
            let at = GuestAddress(RX_BUFFERS + u64::from(index) * RX_BUFFER);
            self.memory.read_slice(&mut bytes, at).expect("a buffer");
            packets.push(Packet::from_device(&bytes));
            self.taken.push(index as u16);
        }
        packets
    }

    /// The guest sends a packet, and the device handles it if it can: the guest may have to take packets first.
    pub fn send(&mut self, packet: &Packet, payload: &[u8]) {
        let bytes = [packet.header().as_slice(), payload].concat();
        self.memory
            .write_slice(&bytes, GuestAddress(TX_BUFFER))
            .expect("a buffer");
        for (index, addr, len) in [(0, TX_BUFFER, HEADER), (1, TX_BUFFER + HEADER as u64, payload.len())] {
            let descriptor = Descriptor {
                addr,
                len: len as u32,
                flags: if index == 0 { NEXT } else { 0 },
                next: 1,
            };
            self.tx.describe(&self.memory, index, descriptor);
        }
        self.tx.publish(&self.memory, 0);
        self.machine.kick(0, 1);
        self.settle();
        let used = self.tx.pop_used(&self.memory);
        assert_eq!(used, Some((0, 0)), "the device takes the guest's packets");
    }

    /// Lets the device do all that there is to do.
    pub fn settle(&mut self) {
        self.machine.settle();
    }

    /// A client of the socket.
    pub fn client(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.path()).expect("the device listens");
        client.set_nonblocking(true).expect("a socket");
        self.settle();
        client
    }

    /// The host end of a connection that the guest opened to [`HOST_PORT`].
    pub fn accept(&self) -> Option<UnixStream> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(true).expect("a socket");
        Some(stream)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }
}
