//! The driver's half of a split virtqueue (virtio 1.2, section 2.7).

use msb_vmm::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

/// A buffer continues at `next`.
pub const NEXT: u16 = 1;
/// The device writes to it.
pub const WRITE: u16 = 2;
/// It is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// One entry of a descriptor table.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    /// Bytes of an entry.
    pub const SIZE: u64 = 16;

    /// An entry's wire form.
    pub fn read(bytes: &[u8; 16]) -> Self {
        let [a @ .., l0, l1, l2, l3, f0, f1, n0, n1] = *bytes;
        Self {
            addr: u64::from_le_bytes(a),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Writes the entry at `at`.
    pub fn write(&self, memory: &GuestMemory, at: u64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        memory.write_slice(&bytes, GuestAddress(at)).expect("a table in memory");
    }
}

/// Table, available ring and used ring, one behind the other.
#[derive(Debug, Clone)]
pub struct Ring {
    base: u64,
    size: u16,
    available: u16,
    used: u16,
}

impl Ring {
    /// A queue at `base`, a multiple of 16, whatever is there.
    pub fn at(base: u64, size: u16) -> Self {
        Self {
            base,
            size,
            available: 0,
            used: 0,
        }
    }

    /// A queue at `base`, a multiple of 16; all zeros.
    pub fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        let ring = Self::at(base, size);
        let zeros = vec![0; (ring.end() - base) as usize];
        memory
            .write_slice(&zeros, GuestAddress(base))
            .expect("a ring in memory");
        ring
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.used_ring() + 6 + 8 * u64::from(self.size)
    }

    /// Table, available ring, used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.base, self.available_ring(), self.used_ring()]
    }

    /// Where the used ring begins.
    pub fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    fn available_ring(&self) -> u64 {
        self.base + Descriptor::SIZE * u64::from(self.size)
    }

    /// Puts an entry into the table.
    pub fn describe(&self, memory: &GuestMemory, index: u16, descriptor: Descriptor) {
        descriptor.write(memory, self.base + Descriptor::SIZE * u64::from(index % self.size));
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, memory: &GuestMemory, head: u16) {
        let slot = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        memory.write_obj(head, GuestAddress(slot)).expect("a ring in memory");
        self.available = self.available.wrapping_add(1);
        self.set_available(memory, self.available);
    }

    /// Claims that so many chains were made available.
    pub fn set_available(&self, memory: &GuestMemory, count: u16) {
        let index = GuestAddress(self.available_ring() + 2);
        memory.write_obj(count, index).expect("a ring in memory");
    }

    /// How many chains the device has used.
    pub fn used_count(&self, memory: &GuestMemory) -> u16 {
        memory
            .read_obj(GuestAddress(self.used_ring() + 2))
            .expect("a ring in memory")
    }

    /// The next chain that the device has used: its head, and how many bytes were written to it.
    pub fn pop_used(&mut self, memory: &GuestMemory) -> Option<(u32, u32)> {
        if self.used_count(memory) == self.used {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let read = |at| memory.read_obj(GuestAddress(at)).expect("a ring in memory");
        Some((read(slot), read(slot + 4)))
    }
}
