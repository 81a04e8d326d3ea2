//! The threads of a VM, and how an embedder restricts them.

use std::io;
use std::sync::Arc;

/// What a thread of a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadRole {
    /// Runs a vCPU.
    Vcpu,
    /// Drives a device.
    Device,
}

/// Called on each thread of a VM before it does anything for the guest: to install a seccomp filter, for one.
///
/// An error ends the VM as [`crate::FailureReason::Thread`].
pub type OnThread = Arc<dyn Fn(ThreadRole) -> io::Result<()> + Send + Sync>;
