//! Rights that a VM's process never needs.

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs};

use super::JailError;

/// Capabilities that a kernel may have (`_LINUX_CAPABILITY_U32S_3`).
const MAX_CAPABILITY: libc::c_ulong = 63;

/// Most descriptors of a VM: the vsock device's connections are a thousand at most, and take two each at their ends.
pub const VM_DESCRIPTORS: u64 = 4096;

/// No core dumps, which hold the guest's memory; no file grows beyond `largest_file` bytes; no locked memory; at
/// most `descriptors`, and no more than there may be.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_resources(largest_file: Option<u64>, descriptors: u64) -> Result<(), JailError> {
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limits = [
        (Resource::Core, Some(0)),
        (Resource::Memlock, Some(0)),
        (Resource::Nofile, Some(descriptors.min(allowed))),
        (Resource::Fsize, largest_file),
    ];
    for (resource, limit) in limits {
        if limit.is_none() {
            continue;
        }
        let limit = Rlimit {
            current: limit,
            maximum: limit,
        };
        setrlimit(resource, limit).map_err(JailError::refused("limit resources"))?;
    }
    Ok(())
}

/// Takes all capabilities from what the process could ever get, while it still may.
///
/// # Errors
/// When the kernel refuses.
pub fn bound() -> Result<(), JailError> {
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: the call takes numbers only. It fails beyond the last capability, and for who has none to drop.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(JailError::refused("drop ambient capabilities")(errno)),
    }
}

/// Drops all capabilities for good, forbids new privileges and the eyes of other processes of the user. From here on the
/// process ends with its parent at the latest.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_all() -> Result<(), JailError> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(JailError::refused("drop capabilities"))?;
    set_no_new_privs(true).map_err(JailError::refused("forbid new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(JailError::refused("hide from other processes"))?;
    // A change of the user has cleared it (prctl(2)).
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(JailError::refused("follow the parent"))
}
