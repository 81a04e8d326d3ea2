//! How a VM ends.

use std::fmt;

/// The one end of a VM.
#[derive(Clone, Debug)]
pub enum VmExit {
    /// The guest reset its CPU: it shut down, rebooted, or panicked with `panic=-1`.
    GuestReset,
    /// [`crate::VmHandle::stop`] ended it.
    Stopped,
    /// It could not go on.
    Failed(VmFailure),
}

/// What ended a VM against everybody's will.
#[derive(Clone, Debug, thiserror::Error)]
pub struct VmFailure {
    /// What happened.
    pub reason: FailureReason,
    /// The vCPU on which it happened, if it was one.
    pub vcpu: Option<u8>,
    /// That vCPU's instruction pointer, if KVM still tells it.
    pub rip: Option<u64>,
    /// The last lines of the guest's console, oldest first.
    pub console: Vec<String>,
}

impl fmt::Display for VmFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if let Some(vcpu) = self.vcpu {
            write!(f, " on vCPU {vcpu}")?;
        }
        if let Some(rip) = self.rip {
            write!(f, " at RIP {rip:#x}")?;
        }
        match self.console.last() {
            Some(line) => write!(f, "; the console's last line: {line}"),
            None => write!(f, "; the console is empty"),
        }
    }
}

/// What happened when a VM failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FailureReason {
    /// A fault while the guest handled a double fault.
    #[error("the guest's CPU shut down (triple fault)")]
    TripleFault,
    /// KVM could not emulate or run an instruction. `suberror` is `KVM_INTERNAL_ERROR_*`.
    #[error("KVM could not run the guest's code (internal error, suberror {suberror})")]
    Internal {
        /// `KVM_INTERNAL_ERROR_EMULATION` is 1.
        suberror: u32,
    },
    /// The CPU refused to enter the guest.
    #[error("the CPU refused to enter the guest (hardware reason {0:#x})")]
    FailEntry(u64),
    /// An exit this monitor has no use for.
    #[error("KVM left the guest for an unexpected reason: {0}")]
    Unexpected(String),
    /// `KVM_RUN` failed.
    #[error("KVM could not run the guest: {0}")]
    Run(String),
    /// A monitor thread ended before the VM did.
    #[error("the monitor's thread {0} ended before the guest")]
    Thread(String),
}
