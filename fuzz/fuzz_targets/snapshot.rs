//! The saved state of a VM with anything in it, and devices that go on from it.
//!
//! A state is refused, or the devices work with it as if a driver had brought it about: whatever the queues hold then, no
//! device keeps the others waiting. Rings that overlap may have ever more for it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::{Input, Machine};
use msb_vmm::devices::virtio::block::Block;
use msb_vmm::devices::virtio::rng::Rng;
use msb_vmm::devices::virtio::vsock::Vsock;
use msb_vmm::{DiskConfig, Snapshot, VsockConfig};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of guest memory: a little, so that queues are in it.
const MEMORY: usize = 1 << 16;
const CID: u32 = 3;
/// Turns of the devices after each notification: more than what has an end takes.
const TURNS: usize = 4;

// Registers of virtio-mmio (virtio 1.2, section 4.2.2).
const DEVICE_ID: u64 = 0x08;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const QUEUE_NUM_MAX: u64 = 0x34;
const STATUS: u64 = 0x70;

/// What a driver's steps lead to, and two that they do not.
const STATUSES: &[u32] = &[0, 1, 3, 11, 15, 15, 15, 15 | 64, 15 | 128, 11 | 128, 8, 4];

/// A file with right header and checksum, whatever its contents are.
fn read(contents: &[u8]) {
    let length = u32::try_from(contents.len()).expect("an input is short");
    let header = [
        b"MSBSNAP\n".as_slice(),
        &Snapshot::VERSION.to_le_bytes(),
        &length.to_le_bytes(),
    ]
    .concat();
    let file = [&header, &Sha256::digest(contents)[..], contents].concat();
    if let Ok(snapshot) = Snapshot::read(&file[..]) {
        let again = snapshot.to_bytes();
        let read = Snapshot::read(&again[..]).expect("it was written by us");
        assert_eq!(read.to_bytes(), again);
    }
}

fn register(machine: &Machine, device: usize, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    machine.transports[device].read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn offered(machine: &Machine, device: usize) -> u64 {
    let half = |half: u32| {
        machine.write(device, DEVICE_FEATURES_SEL, half);
        u64::from(register(machine, device, DEVICE_FEATURES))
    };
    half(0) | half(1) << 32
}

/// A value that fits, or now and then one that does not.
fn mostly(input: &mut Input<'_>, right: u64) -> u64 {
    match input.byte() {
        0..0xf0 => right,
        _ => u64::from(input.long()),
    }
}

fn queue(input: &mut Input<'_>, max_size: u32) -> Value {
    let mut address = |align: u64| match input.byte() {
        0..0xf0 => u64::from(input.word()) & !(align - 1),
        _ => u64::from(input.long()) << 16,
    };
    let (desc_table, avail_ring, used_ring) = (address(16), address(2), address(4));
    json!({
        "max_size": mostly(input, max_size.into()) as u16,
        "size": mostly(input, 1 << (input.clone().byte() % 9)) as u16,
        "ready": input.byte() < 0xf0,
        "event_idx": input.byte() & 1 == 1,
        "next_avail": input.word(),
        "next_used": input.word(),
        "desc_table": desc_table,
        "avail_ring": avail_ring,
        "used_ring": used_ring,
    })
}

fn state(machine: &Machine, device: usize, input: &mut Input<'_>) -> Value {
    let queues = machine.transports[device].kicks().len();
    let queues = mostly(input, queues as u64).min(8);
    let max_size = register(machine, device, QUEUE_NUM_MAX);
    json!({
        "device_type": mostly(input, register(machine, device, DEVICE_ID).into()) as u32,
        "status": input.pick(STATUSES),
        "interrupt_status": input.byte(),
        "device_features_sel": input.byte(),
        "driver_features_sel": input.byte(),
        "driver_features": offered(machine, device) & !u64::from(input.byte()) | mostly(input, 0),
        "queue_sel": input.byte(),
        "queues": (0..queues).map(|_| queue(input, max_size)).collect::<Vec<_>>(),
    })
}

/// Devices that go on from a state that the input describes, over memory that it fills.
fn restore(input: &mut Input<'_>) {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("disk");
    std::fs::write(&image, vec![7; 8 << 10]).expect("an image");
    let disk = DiskConfig {
        path: image,
        read_only: false,
        serial: "fuzz".into(),
    };
    let mut machine = Machine::new(Machine::memory(MEMORY));
    machine.attach(Rng::new().expect("rng"));
    machine.attach(Vsock::new(VsockConfig::new(CID, directory.path().join("v.sock"))).expect("vsock"));
    machine.attach(Block::open(&disk).expect("block"));
    for device in 0..machine.transports.len() {
        let state = state(&machine, device, input).to_string();
        // Whether it was refused or not, the next one is tried.
        machine.transports[device].restore_json(state.as_bytes());
    }
    let mut kicks = 0;
    while !input.is_empty() && kicks < 16 {
        let address = usize::from(input.word());
        let count = usize::from(input.byte()).min(MEMORY - address);
        let bytes = input.take(count);
        machine
            .memory
            .write_slice(bytes, GuestAddress(address as u64))
            .expect("inside memory");
        machine.kick(input.below(machine.transports.len()), kicks);
        machine.turns(TURNS);
        kicks += 1;
    }
    for device in 0..machine.transports.len() {
        machine.write(device, STATUS, 0);
        assert_eq!(machine.status(device), 0, "a reset ends whatever was restored");
    }
    machine.turns(TURNS);
}

fuzz_target!(|input: &[u8]| {
    let mut fields = Input::new(input);
    match fields.byte() % 8 {
        0 => read(fields.take(usize::MAX)),
        1 => msb_vmm::devices::legacy::LegacyPorts::restore_json(fields.take(usize::MAX)),
        _ => restore(&mut fields),
    }
});
