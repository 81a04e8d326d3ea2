//! The devices a guest sees.

pub(crate) mod attach;
pub mod bus;
pub mod console;
pub mod console_log;
pub mod ioapic;
pub mod legacy;
pub mod register_page;
pub mod virtio;
