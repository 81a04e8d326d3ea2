//! A KVM microVM monitor as a library.
//!
//! It keeps no process-global state: no signal handlers, no loggers, no `exit`; several VMs run in one process.

pub mod arch;
pub mod config;
pub mod devices;
pub mod memory;
