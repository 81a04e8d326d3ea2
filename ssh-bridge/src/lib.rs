//! The host end of SSH into an msb sandbox.
//!
//! - [`vsock`] opens a byte stream to a port of the guest through the sandbox's Unix socket.
//! - [`preamble`] tells the guest how to serve one connection, ahead of it.
//! - [`pump`], [`serve`] and [`fdpass`] hand that stream to an SSH client: by copying, or as a descriptor ([`fd_passing`]).
//! - [`keys`], [`known_hosts`] and [`ssh_config`] let stock OpenSSH reach a sandbox by name, its host key pinned.
//! - [`client`] is an SSH client of its own, for `msb` and for Rust programs; [`sftp`] are files over it, [`watch`] tells
//!   what changes in them, [`process`] are processes that outlive it.

pub mod fd_passing;
pub mod fdpass;
pub mod keys;
pub mod known_hosts;
pub mod preamble;
pub mod process;
pub mod pump;
pub mod serve;
pub mod sftp;
pub mod ssh_config;
pub mod vsock;
pub mod watch;

mod atomic;
pub mod client;
