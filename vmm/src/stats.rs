//! Counters of what left the guest.

use std::sync::atomic::{AtomicU64, Ordering};

/// Exits of one vCPU to this monitor since it started, by reason. What KVM handles itself is not among them.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters {
    mmio_reads: AtomicU64,
    mmio_writes: AtomicU64,
    port_reads: AtomicU64,
    port_writes: AtomicU64,
    interrupted: AtomicU64,
}

/// Exits of a VM's vCPUs to this monitor, by reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ExitCounts {
    /// Loads from device registers.
    pub mmio_reads: u64,
    /// Stores to device registers.
    pub mmio_writes: u64,
    /// `in` instructions.
    pub port_reads: u64,
    /// `out` instructions.
    pub port_writes: u64,
    /// Signals to the vCPU thread.
    pub interrupted: u64,
}

macro_rules! count {
    ($($method:ident: $field:ident),* $(,)?) => {$(
        /// Counts one. Only the vCPU's own thread writes, so no read-modify-write is needed.
        pub(crate) fn $method(&self) {
            self.$field.store(self.$field.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    )*};
}

impl ExitCounters {
    count! {
        mmio_read: mmio_reads,
        mmio_write: mmio_writes,
        port_read: port_reads,
        port_write: port_writes,
        interrupted: interrupted,
    }
}

impl<'a> FromIterator<&'a ExitCounters> for ExitCounts {
    fn from_iter<I: IntoIterator<Item = &'a ExitCounters>>(vcpus: I) -> Self {
        vcpus.into_iter().fold(Self::default(), |sum, vcpu| Self {
            mmio_reads: sum.mmio_reads + vcpu.mmio_reads.load(Ordering::Relaxed),
            mmio_writes: sum.mmio_writes + vcpu.mmio_writes.load(Ordering::Relaxed),
            port_reads: sum.port_reads + vcpu.port_reads.load(Ordering::Relaxed),
            port_writes: sum.port_writes + vcpu.port_writes.load(Ordering::Relaxed),
            interrupted: sum.interrupted + vcpu.interrupted.load(Ordering::Relaxed),
        })
    }
}
