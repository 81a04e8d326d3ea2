//! The host end of SSH into an msb sandbox.
//!
//! - [`vsock`] opens a byte stream to a port of the guest through the sandbox's Unix socket.
//! - [`pump`], [`serve`] and [`fdpass`] hand that stream to an SSH client: by copying, or as a descriptor.
//! - [`keys`] and [`known_hosts`] let stock OpenSSH reach a sandbox by name, its host key pinned.

pub mod fdpass;
pub mod keys;
pub mod known_hosts;
pub mod pump;
pub mod serve;
pub mod vsock;

mod atomic;
pub mod client;
