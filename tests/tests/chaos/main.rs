//! Faults from outside: processes killed at every step, full disks, stopped processes, many sandboxes, greedy guests.
//!
//! After each, `msb ls` tells the truth, nothing is left that nobody asked to keep, and a new sandbox starts. With
//! `MSB_SOAK` set (`scripts/test --soak`) there are several times as many.

mod clock;
mod disk;
mod guest;
mod kill;
mod many;
mod stall;
mod truth;

/// Whether to take minutes.
fn is_soak() -> bool {
    std::env::var_os("MSB_SOAK").is_some()
}

/// How often to do something: `usual` times, or `soak` times.
fn rounds(usual: usize, soak: usize) -> usize {
    if is_soak() { soak } else { usual }
}
