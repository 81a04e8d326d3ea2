//! MicroVM sandboxes on KVM that stock ssh reaches with no network port.
//!
//! A [`Store`] is a directory of sandboxes; a [`Sandbox`] is one of them. There is no daemon: each running sandbox is
//! one VMM process, and what a sandbox is doing follows from its lock and its records.

pub mod assets;
pub mod cli;
pub mod doctor;
pub mod identity;
pub mod quote;
mod report;
pub mod sandbox;
pub mod store;
pub mod timings;
pub mod vmm_process;

pub use sandbox::Sandbox;
pub use sandbox::spec::SandboxSpec;
pub use sandbox::state::State;
pub use store::Store;
