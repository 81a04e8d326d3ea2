//! The guest's side: a virtio driver on plain guest memory.

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::header::{HEADER_SIZE, Header};
use crate::devices::register_page::RegisterPage;
use crate::devices::virtio::device::{Activation, ActiveQueue};
use crate::devices::virtio::interrupt::Interrupt;
use crate::memory::GuestMemory;

pub(super) const SIZE: u16 = 256;
const MEMORY: usize = 64 << 20;
/// Where the buffers of the receive queue begin, one page each.
const RX_BUFFERS: u64 = 1 << 20;
pub(super) const RX_BUFFER_LEN: u32 = 4096;
/// Where the packets of the transmit queue begin, 128 KiB each.
const TX_BUFFERS: u64 = 4 << 20;
const TX_BUFFER_LEN: u64 = 128 << 10;

/// The driver's half of a split virtqueue.
pub(super) struct Ring {
    memory: GuestMemory,
    base: u64,
    avail: u16,
    used: u16,
    pub(super) kick: EventFd,
}

impl Ring {
    fn new(memory: &GuestMemory, base: u64) -> Self {
        Self {
            memory: memory.clone(),
            base,
            avail: 0,
            used: 0,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(SIZE)
    }

    fn used_ring(&self) -> u64 {
        self.base + 0x4000
    }

    fn start(&self, event_idx: bool) -> ActiveQueue {
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(low(self.base), Some(0));
        queue.set_avail_ring_address(low(self.avail_ring()), Some(0));
        queue.set_used_ring_address(low(self.used_ring()), Some(0));
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        let kick = self.kick.try_clone().unwrap();
        ActiveQueue { queue, kick }
    }

    pub(super) fn describe(&self, index: u16, addr: u64, len: u32, flags: u32, next: u16) {
        let descriptor = Descriptor::new(addr, len, u16::try_from(flags).unwrap(), next);
        self.memory
            .write_obj(descriptor, GuestAddress(self.base + 16 * u64::from(index)))
            .unwrap();
    }

    pub(super) fn publish(&mut self, head: u16) {
        let slot = self.avail_ring() + 4 + 2 * u64::from(self.avail % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_idx(self.avail);
    }

    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.memory.write_obj(idx, GuestAddress(self.avail_ring() + 2)).unwrap();
    }

    /// Asks for an interrupt when the device has used that many buffers (`used_event`).
    pub(super) fn set_used_event(&self, idx: u16) {
        self.memory
            .write_obj(idx, GuestAddress(self.avail_ring() + 4 + 2 * u64::from(SIZE)))
            .unwrap();
    }

    /// The buffer count at which the device asks for a notification (`avail_event`).
    pub(super) fn avail_event(&self) -> u16 {
        self.memory
            .read_obj(GuestAddress(self.used_ring() + 4 + 8 * u64::from(SIZE)))
            .unwrap()
    }

    pub(super) fn used_idx(&self) -> u16 {
        self.memory.read_obj(GuestAddress(self.used_ring() + 2)).unwrap()
    }

    pub(super) fn avail_idx(&self) -> u16 {
        self.avail
    }

    fn pop_used(&mut self) -> Option<(u16, u32)> {
        if self.used_idx() == self.used {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((u16::try_from(head).unwrap(), len))
    }
}

/// A driver of the vsock device.
pub(super) struct Driver {
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) event: Ring,
    /// Transmit slots of four descriptors that are free.
    free_tx: VecDeque<u16>,
}

impl Driver {
    pub(super) fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self {
            rx: Ring::new(&memory, 0x1_0000),
            tx: Ring::new(&memory, 0x2_0000),
            event: Ring::new(&memory, 0x3_0000),
            interrupt: Arc::new(Interrupt::new(RegisterPage::new().unwrap()).unwrap()),
            memory,
            free_tx: (0..SIZE / 4).map(|slot| slot * 4).collect(),
        }
    }

    /// What the transport hands to the device.
    pub(super) fn activation(&self, event_idx: bool) -> Activation {
        Activation {
            memory: self.memory.clone(),
            interrupt: Arc::clone(&self.interrupt),
            queues: [&self.rx, &self.tx, &self.event]
                .map(|ring| ring.start(event_idx))
                .into(),
            features: 0,
        }
    }

    /// Gives the device all receive buffers.
    pub(super) fn post_all_rx(&mut self) {
        for index in 0..SIZE {
            self.post_rx(index);
        }
    }

    /// Gives the device one receive buffer.
    pub(super) fn post_rx(&mut self, index: u16) {
        let addr = RX_BUFFERS + u64::from(index) * u64::from(RX_BUFFER_LEN);
        self.rx.describe(index, addr, RX_BUFFER_LEN, VRING_DESC_F_WRITE, 0);
        self.rx.publish(index);
        self.rx.kick.write(1).unwrap();
    }

    /// The next packet from the device; its buffer is given back if `repost`.
    pub(super) fn receive(&mut self, repost: bool) -> Option<(Header, Vec<u8>)> {
        let (index, len) = self.rx.pop_used()?;
        let addr = RX_BUFFERS + u64::from(index) * u64::from(RX_BUFFER_LEN);
        let mut packet = vec![0; usize::try_from(len).unwrap()];
        self.memory.read_slice(&mut packet, GuestAddress(addr)).unwrap();
        let payload = packet.split_off(HEADER_SIZE);
        let header = Header::decode(packet.as_slice().try_into().unwrap());
        assert_eq!(usize::try_from(header.len).unwrap(), payload.len());
        if repost {
            self.post_rx(index);
        }
        Some((header, payload))
    }

    /// Sends a packet as Linux does: header and payload in a descriptor each.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
        self.send_in_pieces(header, payload, &[HEADER_SIZE, payload.len()]);
    }

    /// Sends a packet in up to four descriptors of these sizes.
    pub(super) fn send_in_pieces(&mut self, header: &Header, payload: &[u8], pieces: &[usize]) {
        let head = self.free_tx_slot();
        let mut addr = self.write_packet(head, header, payload);
        for (i, len) in (0u16..).zip(pieces) {
            let is_last = usize::from(i) + 1 == pieces.len();
            let flags = if is_last { 0 } else { VRING_DESC_F_NEXT };
            let next = head + i + 1;
            self.tx
                .describe(head + i, addr, u32::try_from(*len).unwrap(), flags, next);
            addr += u64::try_from(*len).unwrap();
        }
        self.tx.publish(head);
        self.tx.kick.write(1).unwrap();
    }

    /// Sends a packet through an indirect descriptor table.
    pub(super) fn send_indirect(&mut self, header: &Header, payload: &[u8]) {
        let head = self.free_tx_slot();
        let addr = self.write_packet(head, header, payload);
        let table = addr + TX_BUFFER_LEN - 64;
        let next = u16::try_from(VRING_DESC_F_NEXT).unwrap();
        let payload_len = u32::try_from(payload.len()).unwrap();
        self.memory
            .write_obj(Descriptor::new(addr, 44, next, 1), GuestAddress(table))
            .unwrap();
        self.memory
            .write_obj(Descriptor::new(addr + 44, payload_len, 0, 0), GuestAddress(table + 16))
            .unwrap();
        self.tx.describe(head, table, 32, VRING_DESC_F_INDIRECT, 0);
        self.tx.publish(head);
        self.tx.kick.write(1).unwrap();
    }

    /// Whether the device has taken every packet.
    pub(super) fn is_tx_drained(&mut self) -> bool {
        self.reclaim_tx();
        self.free_tx.len() == usize::from(SIZE / 4)
    }

    /// Whether there is room for a packet.
    pub(super) fn can_send(&mut self) -> bool {
        self.reclaim_tx();
        !self.free_tx.is_empty()
    }

    fn free_tx_slot(&mut self) -> u16 {
        self.reclaim_tx();
        self.free_tx
            .pop_front()
            .expect("the test lets the device run before the ring is full")
    }

    fn reclaim_tx(&mut self) {
        while let Some((head, len)) = self.tx.pop_used() {
            assert_eq!(len, 0, "the device writes nothing into packets of the guest");
            self.free_tx.push_back(head);
        }
    }

    fn write_packet(&self, head: u16, header: &Header, payload: &[u8]) -> u64 {
        let addr = TX_BUFFERS + u64::from(head / 4) * TX_BUFFER_LEN;
        self.memory.write_slice(&header.encode(), GuestAddress(addr)).unwrap();
        self.memory.write_slice(payload, GuestAddress(addr + 44)).unwrap();
        addr
    }
}
