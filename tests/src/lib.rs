//! What the whole-system tests share: an `msb` with a home of its own, stock OpenSSH configured by it, terminals.
//!
//! The tests run where KVM works, with the release `msb` of `target/msb` first on `PATH`: `scripts/test` sees to both.

mod base_image;
mod commands;
mod endpoint;
mod memory;
mod msb;
mod programs_disk;
mod terminal;

pub use commands::{Finished, MASTER, finish, finish_with_input, sha256, sha256_of_file};
pub use endpoint::Endpoint;
pub use memory::{VmMemory, resident_beyond_guest};
pub use msb::{Msb, Sandbox, vmlinux};
pub use programs_disk::ProgramsDisk;
pub use terminal::Terminal;
