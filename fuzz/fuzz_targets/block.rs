//! Requests to a disk, cut into descriptors in any way, against a model of the disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::ring::{Descriptor, NEXT, Ring, WRITE};
use msb_fuzz::{Input, Machine};
use msb_vmm::DiskConfig;
use msb_vmm::devices::virtio::block::Block;
use vm_memory::{Bytes, GuestAddress};

const SECTOR: usize = 512;
const SECTORS: u64 = 32;
const SERIAL: &[u8; 20] = b"fuzz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const RING: u64 = 0x1000;
const BUFFERS: u64 = 0x4000;
const MEMORY: usize = 1 << 17;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// No status of the specification.
const UNTOUCHED: u8 = 0xee;

struct Disk {
    contents: Vec<u8>,
    read_only: bool,
}

impl Disk {
    fn range(&self, sector: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
        let end = start.checked_add(len)?;
        (len.is_multiple_of(SECTOR) && end <= self.contents.len()).then_some(start..end)
    }

    /// The status, and what the guest reads.
    fn perform(&mut self, kind: u32, sector: u64, sent: &[u8], room: usize) -> (u8, Option<Vec<u8>>) {
        match kind {
            IN => match self.range(sector, room) {
                Some(range) => (OK, Some(self.contents[range].to_vec())),
                None => (IO_ERROR, None),
            },
            OUT if self.read_only => (IO_ERROR, None),
            OUT => match self.range(sector, sent.len()) {
                Some(range) => {
                    self.contents[range].copy_from_slice(sent);
                    (OK, None)
                }
                None => (IO_ERROR, None),
            },
            FLUSH => (OK, None),
            GET_ID => (OK, Some(SERIAL[..room.min(SERIAL.len())].to_vec())),
            _ => (UNSUPPORTED, None),
        }
    }
}

/// Lays `bytes` from `address` on into descriptors of sizes that the input says.
fn cut(input: &mut Input<'_>, chain: &mut Vec<Descriptor>, address: &mut u64, bytes: usize, flags: u16) {
    let mut left = bytes;
    // The last piece takes the rest, so that the chain fits the queue.
    for piece in 0..5 {
        let len = if piece == 4 {
            left
        } else {
            usize::from(input.word() & 0x7ff).min(left)
        };
        chain.push(Descriptor {
            addr: *address,
            len: len as u32,
            flags,
            next: 0,
        });
        *address += len as u64;
        left -= len;
        if left == 0 {
            return;
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let contents: Vec<u8> = (0..SECTORS as usize * SECTOR).map(|at| (at / 7) as u8).collect();
    std::fs::write(&path, &contents).expect("an image");
    let read_only = input.byte() & 7 == 7;
    let config = DiskConfig {
        path: path.clone(),
        read_only,
        serial: "fuzz".into(),
    };
    let mut disk = Disk { contents, read_only };
    let mut machine = Machine::new(Machine::memory(MEMORY));
    machine.attach(Block::open(&config).expect("a disk"));
    let memory = machine.memory.clone();
    let mut ring = Ring::new(&memory, RING, 64);
    machine.start(0, std::slice::from_ref(&ring), 0);
    machine.settle();

    while !input.is_empty() {
        let kind = input.pick(&[IN, OUT, IN, OUT, FLUSH, GET_ID, 11, u32::MAX]);
        let sector = match input.byte() {
            255 => u64::MAX - 1,
            254 => u64::from(input.long()) << 32,
            near => u64::from(near) % (SECTORS + 2),
        };
        let sizes = [0, SECTOR, 2 * SECTOR, 8 * SECTOR, SECTOR + 1, usize::from(input.byte())];
        let (sent, room) = (input.pick(&sizes), input.pick(&sizes));
        let fill = input.byte();
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let data: Vec<u8> = (0..sent).map(|at| fill.wrapping_add((at / 3) as u8)).collect();

        let mut address = BUFFERS;
        let mut chain = Vec::new();
        cut(&mut input, &mut chain, &mut address, header.len() + sent, 0);
        let answer = address;
        cut(&mut input, &mut chain, &mut address, room + 1, WRITE);
        memory
            .write_slice(&[&header[..], &data].concat(), GuestAddress(BUFFERS))
            .expect("buffers");
        memory
            .write_slice(&vec![UNTOUCHED; room + 1], GuestAddress(answer))
            .expect("buffers");
        for (index, descriptor) in chain.iter().enumerate() {
            let is_last = index + 1 == chain.len();
            let next = Descriptor {
                flags: descriptor.flags | if is_last { 0 } else { NEXT },
                next: index as u16 + 1,
                ..*descriptor
            };
            ring.describe(&memory, index as u16, next);
        }
        ring.publish(&memory, 0);
        machine.kick(0, 0);
        machine.settle();

        let (status, expected) = disk.perform(kind, sector, &data, room);
        let (head, written) = ring.pop_used(&memory).expect("the request was served");
        let mut got = vec![0; room + 1];
        memory.read_slice(&mut got, GuestAddress(answer)).expect("buffers");
        assert_eq!(
            (head, got[room]),
            (0, status),
            "type {kind}, sector {sector}, {sent} and {room} bytes"
        );
        assert!(written as usize <= room + 1);
        if let Some(expected) = expected {
            assert_eq!(got[..expected.len()], expected);
            assert!(written as usize > expected.len());
        }
    }
    drop(machine);
    assert!(std::fs::read(&path).expect("the image") == disk.contents);
});
