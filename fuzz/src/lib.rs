//! What the fuzz targets share: an input as numbers, frames and archives, the driver's half of a
//! device, devices on an event loop, and FUSE messages.

pub mod archive;
pub mod frames;
pub mod fuse;
pub mod input;
pub mod machine;
pub mod ring;
pub mod vsock;

pub use input::Input;
pub use machine::Machine;
pub use ring::Ring;
