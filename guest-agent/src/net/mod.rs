//! Byte streams over raw descriptors.

mod stream;

pub use stream::{FdStream, Liveness};
