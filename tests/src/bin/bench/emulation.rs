//! Keeps samples on an emulated host from each other.

use std::fs;

use crate::fork::available_kib;

/// More than the guests of a sample have touched, in KiB.
const TOUCHED: f64 = 512.0 * 1024.0;

const PAGE: usize = 4096;

/// On an emulated host, takes and gives back the memory that earlier guests had, which whoever starts next would get.
///
/// QEMU 7.2 drops what it translated of the code in a page block by block while the page is overwritten: where the host
/// zeroes a huge page that held the text of an earlier guest, that takes some 100 ms instead of one, 0.4 s for a boot. A
/// CPU does nothing of the kind, and it is the earlier guest's cost, whoever's that was.
pub(crate) fn forget_earlier_guests() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !cpu.contains("QEMU TCG") {
        return;
    }
    let kib = TOUCHED.min(available_kib() / 2.0);
    if kib > 0.0 {
        zero_memory(kib);
    }
}

/// Has the host zero `kib` KiB.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between nothing and what a host has"
)]
fn zero_memory(kib: f64) {
    let mut memory = vec![0u8; kib as usize * 1024];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}
