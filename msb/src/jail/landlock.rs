//! Landlock without a single allowed path: whatever else fails, no file can be opened, made or removed. Who serves a volume
//! has one.

use std::os::fd::{AsFd, BorrowedFd};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
};

use super::JailError;

/// The newest ABI this knows; an older kernel enforces what it knows.
const NEWEST: ABI = ABI::V6;

/// Forbids every access to files, TCP ports, and abstract sockets of others. Returns the ABI that the kernel enforces, 0
/// for none.
///
/// # Errors
/// When the kernel has Landlock and refuses to enforce it.
pub fn forbid_files() -> Result<u8, JailError> {
    restrict(Ok)
}

/// The same but for what is below `directory`: everything there is read, and written if `writable`; no program of it runs,
/// and no device is made there.
///
/// # Errors
/// As [`forbid_files`].
pub fn allow_only_below(directory: BorrowedFd<'_>, writable: bool) -> Result<u8, JailError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let allowed: BitFlags<AccessFs> = match writable {
        true => AccessFs::from_all(NEWEST) & !never,
        false => read,
    };
    restrict(|ruleset| ruleset.add_rule(PathBeneath::new(directory.as_fd(), allowed)))
}

fn restrict(allow: impl FnOnce(RulesetCreated) -> Result<RulesetCreated, RulesetError>) -> Result<u8, JailError> {
    let failed = |error: RulesetError| JailError::Refused {
        doing: "forbid files (Landlock)",
        source: std::io::Error::other(error),
    };
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(allow)
        .map_err(failed)?;
    ruleset.restrict_self().map_err(failed)?;
    Ok(abi_of_kernel())
}

/// landlock_create_ruleset(2) with `LANDLOCK_CREATE_RULESET_VERSION`.
fn abi_of_kernel() -> u8 {
    const VERSION: u32 = 1;
    // SAFETY: asked for its version, the call takes no memory.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            VERSION,
        )
    };
    u8::try_from(abi).unwrap_or(0)
}
