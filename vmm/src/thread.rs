//! The threads of a VM, and how an embedder restricts them.

use std::io;
use std::sync::Arc;
use std::thread::Builder;

/// Stack of a thread, in bytes: far more than it needs, and too little for a huge page, which the kernel would otherwise
/// give a stack of 2 MiB at its first touch.
const STACK: usize = 512 << 10;

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

/// A thread that is about to be started.
pub(crate) fn builder(name: &str) -> Builder {
    Builder::new().name(name.to_owned()).stack_size(STACK)
}
