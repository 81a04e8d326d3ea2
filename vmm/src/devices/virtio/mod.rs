//! Virtio devices and their MMIO transport (virtio 1.2).

pub mod device;
pub mod interrupt;
