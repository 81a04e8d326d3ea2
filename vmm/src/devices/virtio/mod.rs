//! Virtio devices and their MMIO transport (virtio 1.2).

pub mod block;
pub mod device;
pub mod interrupt;
pub mod mmio;
mod notification;
pub mod rng;
mod single_queue;
pub mod vsock;
pub mod wakeup;
