//! The devices a guest sees.

pub mod virtio;
