//! Byte streams over raw descriptors, and connections to the host.

pub mod host;
mod stream;

pub use stream::{FdStream, Liveness};
