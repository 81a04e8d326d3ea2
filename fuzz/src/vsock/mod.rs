//! A vsock device between a guest that sends what it likes and clients of the host.

mod bench;
mod connection;
mod packet;
mod world;

pub use bench::{BUFFER_SIZE, Bench, HOST_PORT, MAX_CONNECTIONS};
pub use packet::{Op, Packet};
pub use world::World;
