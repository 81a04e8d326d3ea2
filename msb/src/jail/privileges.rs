//! Rights that a VM's process never needs.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs};

use super::JailError;

/// Capabilities that a kernel may have (`_LINUX_CAPABILITY_U32S_3`).
const MAX_CAPABILITY: libc::c_ulong = 63;

/// No core dumps: they hold the guest's memory.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_resources() -> Result<(), JailError> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(JailError::refused("forbid core dumps"))
}

/// Drops all capabilities for good, forbids new privileges and the eyes of other processes of the user.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_all() -> Result<(), JailError> {
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: the call takes numbers only. It fails beyond the last capability, and for who has none to drop.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(JailError::refused("drop ambient capabilities")(errno)),
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(JailError::refused("drop capabilities"))?;
    set_no_new_privs(true).map_err(JailError::refused("forbid new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(JailError::refused("hide from other processes"))
}
