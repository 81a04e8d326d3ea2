//! Virtio devices and their MMIO transport (virtio 1.2).

pub mod balloon;
pub mod block;
pub mod device;
pub mod fs;
pub mod interrupt;
pub mod mmio;
mod notification;
mod request_queues;
pub mod rng;
pub mod vsock;
pub mod wakeup;
