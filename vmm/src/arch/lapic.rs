//! Local interrupt lines of a vCPU's APIC.

use kvm_bindings::kvm_lapic_state;

/// Local vector table entries LINT0 and LINT1 (Intel SDM volume 3, section 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MASK: u32 = 0x700;
const DELIVER_NMI: u32 = 0x400;
const DELIVER_EXT_INT: u32 = 0x700;

/// Wires LINT0 to the PIC and LINT1 to NMI, as the MP table says.
pub fn wire_local_interrupts(lapic: &mut kvm_lapic_state) {
    set_delivery(lapic, LVT_LINT0, DELIVER_EXT_INT);
    set_delivery(lapic, LVT_LINT1, DELIVER_NMI);
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let mut bytes = [0; 4];
    for (byte, source) in bytes.iter_mut().zip(&lapic.regs[register..]) {
        *byte = source.to_le_bytes()[0];
    }
    let value = (u32::from_le_bytes(bytes) & !DELIVERY_MASK) | mode;
    for (target, byte) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
        *target = std::os::raw::c_char::from_le_bytes([byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_delivery_mode_changes() {
        let mut lapic = kvm_lapic_state { regs: [0; 1024] };
        lapic.regs[LVT_LINT0 + 2] = 1;
        wire_local_interrupts(&mut lapic);
        assert_eq!(lapic.regs[LVT_LINT0..LVT_LINT0 + 4], [0, 7, 1, 0]);
        assert_eq!(lapic.regs[LVT_LINT1..LVT_LINT1 + 4], [0, 4, 0, 0]);
    }
}
