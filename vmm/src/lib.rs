//! A KVM microVM monitor as a library.
//!
//! It keeps no process-global state: no signal handlers, no loggers, no `exit`; several VMs run in one process.

pub mod arch;
pub mod config;
pub mod devices;
mod event_loop;
mod exit;
pub mod kvm;
pub mod memory;
mod pause;
mod snapshot;
mod stats;
mod supervisor;
mod thread;
mod vcpu;
mod vm;

pub use config::{Console, ConsoleLog, DiskConfig, FileSystemConfig, Initramfs, VmConfig};
pub use devices::console_log::RotatingLog;
pub use devices::virtio::vsock::{HoldPolicy, VsockConfig, VsockLimits};
pub use exit::{FailureReason, VmExit, VmFailure};
pub use snapshot::{Snapshot, SnapshotError};
pub use stats::ExitCounts;
pub use thread::{OnThread, ThreadRole};
pub use vm::{BuildError, KERNEL_ARGUMENTS, PauseError, RunningVm, Vm, VmHandle};
