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
/// Interrupt line of the first virtio device.
pub const FIRST_VIRTIO_IRQ: u32 = 5;
/// How many lines a machine with so many virtio devices has.
pub fn irq_lines(virtio_devices: usize) -> u32 {
    u32::try_from(virtio_devices).map_or(IRQ_LINES, |devices| {
        FIRST_VIRTIO_IRQ.saturating_add(devices).min(IRQ_LINES)
    })
}

/// How many virtio devices fit, one interrupt line each.
pub const MAX_VIRTIO_DEVICES: usize = (IRQ_LINES - FIRST_VIRTIO_IRQ) as usize;

/// The most vCPUs the MP table has room for in its window.
pub const MAX_VCPUS: u8 = 64;
