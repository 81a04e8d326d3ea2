//! The MP configuration table: how the guest learns of its CPUs and of the IOAPIC without ACPI.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4.

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const SPEC_REVISION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1;
const CPU_BOOTSTRAP: u8 = 2;
const CPU_FEATURE_APIC_FPU: u32 = 0x201;
const CPU_STEPPING: u32 = 0x600;
const IOAPIC_USABLE: u8 = 1;
const ALL_LOCAL_APICS: u8 = 0xff;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXT_INT: u8 = 3;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FloatingPointer {
    signature: [u8; 4],
    table: u32,
    length: u8,
    revision: u8,
    checksum: u8,
    features: [u8; 5],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Header {
    signature: [u8; 4],
    length: u16,
    revision: u8,
    checksum: u8,
    oem: [u8; 8],
    product: [u8; 12],
    oem_table: u32,
    oem_length: u16,
    entries: u16,
    local_apic: u32,
    reserved: u32,
}

// SAFETY: plain integers and byte arrays without padding: 16 bytes.
unsafe impl ByteValued for FloatingPointer {}
// SAFETY: plain integers and byte arrays without padding: 44 bytes.
unsafe impl ByteValued for Header {}
const _: () = assert!(size_of::<FloatingPointer>() == 16 && size_of::<Header>() == 44);

/// Writes the table for `vcpus` CPUs and `lines` interrupt lines to [`layout::MPTABLE`].
///
/// # Errors
/// When guest memory does not hold the table's window.
pub fn write(memory: &GuestMemory, vcpus: u8, lines: u32) -> Result<(), GuestMemoryError> {
    let table = configuration_table(vcpus, lines);
    let table_address = layout::MPTABLE + size_of::<FloatingPointer>() as u64;
    let mut pointer = FloatingPointer {
        signature: *b"_MP_",
        table: u32::try_from(table_address).expect("the window lies below 1 MiB"),
        length: 1,
        revision: SPEC_REVISION,
        ..Default::default()
    };
    pointer.checksum = checksum(pointer.as_slice());
    memory.write_slice(pointer.as_slice(), GuestAddress(layout::MPTABLE))?;
    memory.write_slice(&table, GuestAddress(table_address))
}

fn configuration_table(vcpus: u8, lines: u32) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::new();
    let mut count = 0;
    let mut push = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for cpu in 0..vcpus {
        push(&processor(cpu));
    }
    push(b"\x01\x00ISA   ");
    debug_assert_eq!(ENTRY_BUS, 1);
    push(&ioapic(ioapic_id));
    for line in 1..lines.min(layout::IRQ_LINES).to_le_bytes()[0] {
        push(&[ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, 0, line, ioapic_id, line]);
    }
    push(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXT_INT, 0, 0, 0, 0, 0, 0]);
    push(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, 0, ALL_LOCAL_APICS, 1]);

    let length = size_of::<Header>() + entries.len();
    let mut header = Header {
        signature: *b"PCMP",
        length: u16::try_from(length).expect("a table of at most 64 CPUs has under 2 KiB"),
        revision: SPEC_REVISION,
        oem: *b"MSB     ",
        product: *b"MICROVM     ",
        entries: count,
        local_apic: layout::LOCAL_APIC,
        ..Default::default()
    };
    let mut table = [header.as_slice(), &entries].concat();
    header.checksum = checksum(&table);
    table[..size_of::<Header>()].copy_from_slice(header.as_slice());
    table
}

fn processor(id: u8) -> [u8; 20] {
    let flags = if id == 0 {
        CPU_ENABLED | CPU_BOOTSTRAP
    } else {
        CPU_ENABLED
    };
    let mut entry = [0; 20];
    entry[..4].copy_from_slice(&[ENTRY_PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
    entry[4..8].copy_from_slice(&CPU_STEPPING.to_le_bytes());
    entry[8..12].copy_from_slice(&CPU_FEATURE_APIC_FPU.to_le_bytes());
    entry
}

fn ioapic(id: u8) -> [u8; 8] {
    let address = layout::IOAPIC.to_le_bytes();
    [
        ENTRY_IOAPIC,
        id,
        LOCAL_APIC_VERSION,
        IOAPIC_USABLE,
        address[0],
        address[1],
        address[2],
        address[3],
    ]
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_structures_sum_to_zero_and_fit_their_window_for_every_cpu_count() {
        for vcpus in 1..=layout::MAX_VCPUS {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
            write(&memory, vcpus, layout::IRQ_LINES).unwrap();
            let pointer: FloatingPointer = memory.read_obj(GuestAddress(layout::MPTABLE)).unwrap();
            assert_eq!(sum(pointer.as_slice()), 0);
            let header: Header = memory.read_obj(GuestAddress(pointer.table.into())).unwrap();
            let mut table = vec![0; header.length.into()];
            memory
                .read_slice(&mut table, GuestAddress(pointer.table.into()))
                .unwrap();
            assert_eq!(sum(&table), 0);
            assert!(u64::from(pointer.table) + u64::from(header.length) <= layout::MPTABLE_END);
        }
    }

    #[test]
    fn exactly_one_processor_is_the_bootstrap_processor() {
        let table = configuration_table(3, layout::IRQ_LINES);
        let flags: Vec<u8> = (0..3).map(|cpu| table[size_of::<Header>() + cpu * 20 + 3]).collect();
        assert_eq!(flags, [CPU_ENABLED | CPU_BOOTSTRAP, CPU_ENABLED, CPU_ENABLED]);
    }
}
