//! Registers of the boot CPU at the kernel's 64-bit entry point.
//!
//! Linux boot protocol, "64-bit boot protocol": long mode, identity-mapped pages, flat segments, `rsi` = boot_params.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const CR0_PROTECTED: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;

/// Null, 64-bit code, data and TSS descriptors (Intel SDM volume 3, section 3.4.5).
const GDT: [u64; 4] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

/// Writes the boot GDT, an empty IDT and page tables that identity-map the first GiB.
///
/// # Errors
/// When guest memory has less than its low pages.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    for (entry, offset) in GDT.iter().zip((0..).step_by(8)) {
        memory.write_obj(*entry, GuestAddress(layout::GDT + offset))?;
    }
    memory.write_obj(0u64, GuestAddress(layout::IDT))?;
    memory.write_obj(layout::PDPT | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    memory.write_obj(
        layout::PAGE_DIRECTORY | PAGE_PRESENT_WRITABLE,
        GuestAddress(layout::PDPT),
    )?;
    let mut directory = [0u8; 4096];
    for (entry, page) in directory.chunks_exact_mut(8).zip(0u64..) {
        entry.copy_from_slice(&((page << 21) | PAGE_PRESENT_WRITABLE | PAGE_LARGE).to_le_bytes());
    }
    memory.write_slice(&directory, GuestAddress(layout::PAGE_DIRECTORY))
}

/// General registers at `entry`.
pub fn general(entry: GuestAddress) -> kvm_regs {
    kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.0,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rsi: layout::ZERO_PAGE,
        ..Default::default()
    }
}

/// XCR0 with all of `state` turned on.
///
/// Linux does that itself, and then asks CPUID how large the state is. KVM answers from the XCR0 that it knows, which on
/// QEMU's emulated CPU is the one given here: there, a guest that turns it on does not leave for KVM.
pub fn extended_control(state: u64) -> kvm_xcrs {
    let mut registers = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    registers.xcrs[0] = kvm_xcr {
        xcr: 0,
        value: state,
        ..Default::default()
    };
    registers
}

/// Changes `sregs`, as KVM gave them, to long mode with the tables of [`write_tables`].
pub fn enter_long_mode(sregs: &mut kvm_sregs) {
    let data = segment(2);
    sregs.cs = segment(1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(3);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT) - 1).expect("four descriptors are 32 bytes");
    sregs.idt.base = layout::IDT;
    sregs.idt.limit = 7;
    sregs.cr3 = layout::PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PROTECTED | CR0_PAGING;
    sregs.efer |= EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
}

/// The FPU after `FNINIT`, with all SSE exceptions masked.
pub fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// KVM's form of the descriptor at `index` of the GDT.
fn segment(index: u8) -> kvm_segment {
    let descriptor = GDT[usize::from(index)];
    let bits = |shift: u32, mask: u64| -> u8 { ((descriptor >> shift) & mask).to_le_bytes()[0] };
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: u16::from(index) * 8,
        type_: bits(40, 0xf),
        s: bits(44, 1),
        dpl: bits(45, 3),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_segment_is_64_bit_and_executable() {
        let code = segment(1);
        assert_eq!((code.l, code.db, code.s, code.present, code.selector), (1, 0, 1, 1, 8));
        assert_eq!(code.type_ & 0b1000, 0b1000);
    }

    #[test]
    fn the_page_tables_map_an_address_of_the_first_gib_to_itself() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        write_tables(&memory).unwrap();
        let address = 0x3210_0000u64;
        let entry: u64 = memory
            .read_obj(GuestAddress(layout::PAGE_DIRECTORY + (address >> 21) * 8))
            .unwrap();
        assert_eq!(entry & !0x1f_ffff, address & !0x1f_ffff);
        assert_eq!(
            entry & (PAGE_LARGE | PAGE_PRESENT_WRITABLE),
            PAGE_LARGE | PAGE_PRESENT_WRITABLE
        );
    }
}
