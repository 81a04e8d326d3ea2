//! virtio-vsock: stream sockets between host and guest (virtio 1.2, section 5.10).
//!
//! On the host a connection is a Unix stream socket, in Firecracker's protocol:
//!
//! - into the guest: connect to the device's socket, send `CONNECT <port>\n`, read `OK <host port>\n`. A refusal is the
//!   end of the stream. While the guest does not listen on that port the client waits: see [`HoldPolicy`].
//! - out of the guest: a connection to port P of CID 2 becomes one to the Unix socket `<path>_P`.
//!
//! The parts, from the guest outwards:
//!
//! | module | what it knows |
//! |---|---|
//! | `device` | the transport and the event loop |
//! | `queues` | virtqueues, notifications |
//! | `packet`, `guest_buf`, `header` | packets in guest memory |
//! | `muxer` | which connections there are, who is next (`rx_queue`), deadlines (`timers`) |
//! | `connection` | the protocol of one connection; `credit` and `hold` are its arithmetic |
//! | `host_stream`, `tx_buffer`, `handshake`, `listener` | Unix sockets |
//! | `poller` | the seam to the event loop |
//!
//! Everything a guest or a client can make the device hold is bounded by [`VsockLimits`].

mod completions;
mod config;
mod connection;
mod credit;
mod device;
mod guest_buf;
mod handshake;
mod header;
mod hold;
mod host_ports;
mod host_stream;
mod listener;
mod muxer;
mod packet;
mod poller;
mod queues;
mod rx_queue;
mod slots;
mod timers;
mod tx_buffer;

#[cfg(test)]
mod tests;

pub use config::{HoldPolicy, VsockConfig, VsockLimits};
pub use device::{Vsock, VsockError};
pub use listener::ListenError;
