//! The server of a host directory that a guest mounts.
//!
//! It reads FUSE requests (linux/fuse.h), one a message, from a socket of type `SOCK_SEQPACKET`, carries them out on the
//! files of one directory, and answers each with one message. The guest's kernel makes the requests, and whoever is root
//! there can make any others: what they name are the directory's own entries, one component at a time, and no symbolic link
//! is ever followed.
//!
//! The crate `fuser` reads and writes the protocol; what is done to files is here.

mod attributes;
mod entries;
mod export;
mod files;
mod handles;
mod nodes;
mod server;

pub use export::{Access, Export, own_descriptors};
pub use server::{ServeError, serve};
