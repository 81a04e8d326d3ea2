//! What the whole-system tests share: an `msb` with a home of its own, stock OpenSSH configured by it, terminals.
//!
//! The tests run where KVM works, with the release `msb` of `target/msb` first on `PATH`: `scripts/test` sees to both.

mod commands;
mod msb;
mod terminal;

pub use commands::{Finished, finish, finish_with_input, sha256, sha256_of_file};
pub use msb::{Msb, Sandbox};
pub use terminal::Terminal;
