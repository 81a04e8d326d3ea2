//! Queues as no driver makes them: chains that loop, overlap, nest, leave memory or lie about their number.
//!
//! Whatever a device makes of them, it writes only where a descriptor lets it, and tells of no byte more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::fuse::{self, Server};
use msb_fuzz::ring::{Descriptor, INDIRECT, NEXT, Ring, WRITE};
use msb_fuzz::{Input, Machine};
use msb_vmm::devices::virtio::block::Block;
use msb_vmm::devices::virtio::fs::Fs;
use msb_vmm::devices::virtio::rng::Rng;
use msb_vmm::devices::virtio::vsock::Vsock;
use msb_vmm::{DiskConfig, VsockConfig};
use vm_memory::{Bytes, GuestAddress};

const SIZE: u16 = 16;
const RINGS: u64 = 0x1000;
const RING_SPACING: u64 = 0x400;
const TABLES: u64 = 0x2000;
const TABLE_ENTRIES: u64 = 16;
const BUFFERS: u64 = 0x4000;
const MEMORY: u64 = 1 << 15;
const PAGE: usize = 256;

/// What may be written, and where that is told besides the queues.
struct Permission {
    writable: Vec<(u64, u64)>,
    tables: Vec<(u64, u64)>,
}

struct Driver<'a, 'i> {
    machine: &'a mut Machine,
    input: &'a mut Input<'i>,
    described: Vec<Descriptor>,
}

impl Driver<'_, '_> {
    fn descriptor(&mut self) -> Descriptor {
        let shape = self.input.byte();
        let at = u64::from(self.input.byte());
        let addr = match shape & 7 {
            0..4 => BUFFERS + at * 0x40,
            4 => TABLES + at % 4 * TABLE_ENTRIES * Descriptor::SIZE,
            5 => RINGS + at * 8,
            6 => MEMORY - at,
            _ => u64::MAX - at,
        };
        let len = match shape >> 3 & 7 {
            0 => 16,
            1 => 44,
            2 => 1,
            3 => u32::from(self.input.byte()),
            4 => 512 + 16,
            5 => (TABLE_ENTRIES * Descriptor::SIZE) as u32,
            6 => u32::from(self.input.word()),
            _ => u32::MAX - u32::from(self.input.byte()),
        };
        let flags = self.input.byte();
        let mut flags = u16::from(flags & 0x0f) & (NEXT | WRITE | INDIRECT) | u16::from(flags >> 7) << 15;
        // Otherwise most chains would end in what is no table.
        if shape & 7 != 4 && shape & 0x40 == 0 {
            flags &= !INDIRECT;
        }
        let next = u16::from(self.input.byte()) % (SIZE + 2);
        let descriptor = Descriptor { addr, len, flags, next };
        self.described.push(descriptor);
        descriptor
    }

    fn fill_tables(&mut self) {
        for table in 0..4 {
            for entry in 0..self.input.byte() & 7 {
                let descriptor = self.descriptor();
                let at = TABLES + (table * TABLE_ENTRIES + u64::from(entry)) * Descriptor::SIZE;
                descriptor.write(&self.machine.memory, at);
            }
        }
    }

    fn fill_buffers(&mut self) {
        for _ in 0..self.input.byte() & 3 {
            let at = BUFFERS + u64::from(self.input.byte()) * 0x40;
            let bytes = self.input.take(48);
            self.machine
                .memory
                .write_slice(bytes, GuestAddress(at))
                .expect("buffers");
        }
    }

    /// By what was described, and by what lies where a table was described to be.
    fn permission(&self, memory: &[u8]) -> Permission {
        let (mut writable, mut tables) = (Vec::new(), Vec::new());
        let range = |descriptor: &Descriptor| (descriptor.addr, descriptor.addr.saturating_add(descriptor.len.into()));
        for descriptor in &self.described {
            if descriptor.flags & WRITE != 0 {
                writable.push(range(descriptor));
            }
            if descriptor.flags & INDIRECT == 0 {
                continue;
            }
            tables.push(range(descriptor));
            let table = usize::try_from(descriptor.addr).ok().and_then(|at| memory.get(at..));
            let entries = table.unwrap_or_default().as_chunks().0.iter().map(Descriptor::read);
            let count = u64::from(descriptor.len) / Descriptor::SIZE;
            let entries = entries.take(count as usize).filter(|entry| entry.flags & WRITE != 0);
            writable.extend(entries.map(|entry| range(&entry)));
        }
        Permission { writable, tables }
    }
}

impl Permission {
    /// Whether the device may change what it reads as queues or tables: then anything may follow.
    fn reaches_queues(&self) -> bool {
        let overlap = |a: &(u64, u64), b: &(u64, u64)| a.0 < b.1 && b.0 < a.1;
        let reaches = |range| self.writable.iter().any(|writable| overlap(writable, range));
        reaches(&(RINGS, BUFFERS))
            || self
                .tables
                .iter()
                .any(|table| reaches(table) || overlap(table, &(RINGS, TABLES)))
    }

    fn allows(&self, address: u64) -> bool {
        self.writable.iter().any(|(from, to)| (*from..*to).contains(&address))
    }
}

/// The bytes that the device may tell of for the chain from `index` on, whose table has `count` entries at `table`. A
/// loop ends after as many entries as there are.
fn room(memory: &[u8], table: u64, count: u64, index: u64, is_nested: bool) -> u64 {
    let (mut index, mut room) = (index, 0);
    for _ in 0..count {
        let at = table + index * Descriptor::SIZE;
        let entry = usize::try_from(at).ok().and_then(|at| memory.get(at..)?.first_chunk());
        let (Some(entry), true) = (entry, index < count) else {
            break;
        };
        let descriptor = Descriptor::read(entry);
        if descriptor.flags & INDIRECT != 0 && !is_nested {
            let count = u64::from(descriptor.len) / Descriptor::SIZE;
            // No table has more entries than can be counted by `next`.
            let is_table = count <= u16::MAX.into();
            return room
                + if is_table {
                    self::room(memory, descriptor.addr, count, 0, true)
                } else {
                    0
                };
        }
        if descriptor.flags & WRITE != 0 {
            room += u64::from(descriptor.len);
        }
        if descriptor.flags & NEXT == 0 {
            break;
        }
        index = descriptor.next.into();
    }
    room
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let directory = tempfile::tempdir().expect("a directory");
    let mut machine = Machine::new(Machine::memory(MEMORY as usize));
    let mut server = None;
    let which = input.byte();
    let queues = match (which & 0xc0 == 0x40, which % 3) {
        (true, _) => {
            let (other, config) = Server::new();
            machine.attach(Fs::new(&config).expect("a file system"));
            server = Some(other);
            2
        }
        (_, 0) => {
            machine.attach(Rng::new().expect("rng"));
            1
        }
        (_, 1) => {
            let path = directory.path().join("disk");
            std::fs::write(&path, vec![7; 8 << 10]).expect("an image");
            let config = DiskConfig {
                path,
                read_only: false,
                serial: "fuzz".into(),
            };
            machine.attach(Block::open(&config).expect("block"));
            1
        }
        _ => {
            let config = VsockConfig::new(3, directory.path().join("v.sock"));
            machine.attach(Vsock::new(config).expect("vsock"));
            3
        }
    };
    let memory = machine.memory.clone();
    let mut rings: Vec<Ring> = (0..queues)
        .map(|queue| Ring::new(&memory, RINGS + queue * RING_SPACING, SIZE))
        .collect();
    let (mut before, mut after) = (vec![0; MEMORY as usize], vec![0; MEMORY as usize]);
    let refused = if input.byte() & 1 == 0 { 0 } else { 1 << 29 };
    machine.start(0, &rings, refused);
    machine.settle();
    assert_eq!(machine.status(0), 15);

    let mut driver = Driver {
        machine: &mut machine,
        input: &mut input,
        described: Vec::new(),
    };
    while !driver.input.is_empty() {
        let queue = driver.input.below(rings.len());
        driver.fill_tables();
        driver.fill_buffers();
        for index in 0..driver.input.byte() % (SIZE as u8 + 1) {
            let descriptor = driver.descriptor();
            rings[queue].describe(&memory, index.into(), descriptor);
        }
        let published = driver.input.byte() % 8;
        for _ in 0..published {
            let head = u16::from(driver.input.byte()) % (SIZE + 1);
            rings[queue].publish(&memory, head);
        }
        let lies = driver.input.byte() == 0xff;
        if lies {
            rings[queue].set_available(&memory, driver.input.word());
        }

        memory.read_slice(&mut before, GuestAddress(0)).expect("memory");
        driver.machine.kick(0, queue);
        driver.machine.settle();
        while let Some(request) = server.as_ref().and_then(Server::hear) {
            let body = vec![0xa5; driver.input.byte().into()];
            if let Some(server) = &server {
                server.say(&fuse::answer(fuse::unique(&request), 0, &body));
            }
            driver.machine.settle();
        }
        memory.read_slice(&mut after, GuestAddress(0)).expect("memory");

        let permission = driver.permission(&before);
        if lies || permission.reaches_queues() {
            return;
        }
        let is_used_ring = |address: u64| {
            rings
                .iter()
                .any(|ring| (ring.used_ring()..ring.end()).contains(&address))
        };
        let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
        for (page, (old, new)) in pages.filter(|(_, (old, new))| old != new) {
            for offset in (0..PAGE).filter(|offset| old[*offset] != new[*offset]) {
                let address = (page * PAGE + offset) as u64;
                assert!(
                    is_used_ring(address) || permission.allows(address),
                    "wrote to {address:#x}"
                );
            }
        }
        for ring in &mut rings {
            while let Some((head, written)) = ring.pop_used(&memory) {
                assert!(head < u32::from(SIZE), "used {head}, which is no descriptor");
                let room = room(&before, ring.addresses()[0], SIZE.into(), head.into(), false);
                assert!(
                    u64::from(written) <= room,
                    "told of {written} bytes where {room} have room"
                );
            }
        }
    }
});
