//! Guest-physical addresses and interrupt lines.
//!
//! Low memory follows the Linux boot protocol (Documentation/arch/x86/boot.rst) and the MultiProcessor specification;
//! the hole below 4 GiB holds devices and the local APIC.

/// The GDT of the boot CPU, in low memory.
pub const GDT: u64 = 0x500;
/// An empty IDT.
pub const IDT: u64 = 0x520;
/// `struct boot_params`, the "zero page".
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer of the boot CPU.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page map level 4.
pub const PML4: u64 = 0x9000;
/// Page directory pointers.
pub const PDPT: u64 = 0xa000;
/// Page directory: identity-maps the first GiB with 2 MiB pages.
pub const PAGE_DIRECTORY: u64 = 0xb000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes of the command line with its NUL (x86 `COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
/// End of base memory; the kernel looks for the MP floating pointer in its last KiB (639 KiB).
pub const MPTABLE: u64 = 0x9_fc00;
/// End of what the MP table may use.
pub const MPTABLE_END: u64 = 0xa_0000 + 0x2000;
/// Where kernels are linked to and memory is contiguous from.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Start of the device hole; memory beyond it continues at [`AFTER_HOLE`].
pub const DEVICE_HOLE: u64 = 0xc000_0000;
/// End of the device hole.
pub const AFTER_HOLE: u64 = 0x1_0000_0000;

/// The first virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of each virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The ROM. A huge page of the host fits exactly.
pub const ROM: u64 = 0xe000_0000;
/// The most bytes of a ROM.
pub const ROM_MAX: u64 = 256 << 20;
/// IOAPIC registers (MultiProcessor specification 1.4, section 3.6.5).
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that Intel VT-x needs for real mode.
pub const KVM_TSS: usize = 0xfffb_d000;
/// The page that Intel VT-x needs for an identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The most interrupt lines that the IOAPIC has.
pub const IRQ_LINES: u32 = 24;
/// Interrupt line of the first serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Lines without a virtio device: the serial port's, and 0, which Linux takes for none.
const OTHER_LINES: usize = 2;

/// The most virtio devices, one interrupt line each.
pub const MAX_VIRTIO_DEVICES: usize = IRQ_LINES as usize - OTHER_LINES;

/// Interrupt line of the virtio device with this index, below [`MAX_VIRTIO_DEVICES`]: the first that is free.
pub fn virtio_irq(index: usize) -> u32 {
    let line = u32::try_from(index).map_or(IRQ_LINES, |index| index.saturating_add(1));
    if line < SERIAL_IRQ {
        line
    } else {
        line.saturating_add(1)
    }
}

/// How many lines a machine with so many virtio devices has.
pub fn irq_lines(virtio_devices: usize) -> u32 {
    let last = virtio_devices.checked_sub(1).map_or(SERIAL_IRQ, virtio_irq);
    (last.max(SERIAL_IRQ) + 1).min(IRQ_LINES)
}

/// Where the window of the virtio device with this index, below [`MAX_VIRTIO_DEVICES`], begins.
pub fn virtio_window(index: usize) -> u64 {
    VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE
}

/// The most vCPUs the MP table has room for in its window.
pub const MAX_VCPUS: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_a_line_of_its_own() {
        let mut lines: Vec<u32> = (0..MAX_VIRTIO_DEVICES).map(virtio_irq).chain([0, SERIAL_IRQ]).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..IRQ_LINES).collect::<Vec<_>>());
        assert_eq!([0, 1, 3, 4, MAX_VIRTIO_DEVICES].map(irq_lines), [5, 5, 5, 6, IRQ_LINES]);
    }
}
