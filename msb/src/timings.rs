//! When each phase of a start was over.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Stamps of a start. Those of the host are `CLOCK_MONOTONIC` in microseconds, which all processes share; those of the
/// guest are its uptime. A phase that was not reached has none.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timings {
    /// The VMM process runs msb's code.
    pub vmm_started_us: Option<u64>,
    /// Kernel and image are in the guest's memory.
    pub kernel_loaded_us: Option<u64>,
    /// KVM and the devices are set up.
    pub vm_built_us: Option<u64>,
    /// The virtual CPUs run.
    pub vm_started_us: Option<u64>,
    /// The agent's word that it serves SSH has arrived.
    pub ready_us: Option<u64>,
    /// Guest uptime when PID 1 started.
    pub guest_init_us: Option<u64>,
    /// Guest uptime when SSH was ready.
    pub guest_ready_us: Option<u64>,
}

/// A moment of the past, in microseconds of `CLOCK_MONOTONIC`.
pub fn us_at(moment: Instant) -> u64 {
    let ago = u64::try_from(moment.elapsed().as_micros()).unwrap_or(u64::MAX);
    now_us().saturating_sub(ago)
}

/// Now, in microseconds of `CLOCK_MONOTONIC`.
pub fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanoseconds / 1_000
}
