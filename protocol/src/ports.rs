//! The vsock ports of a sandbox.

/// Guest port on which the agent serves SSH.
pub const SSH: u32 = 22;

/// Host port to which the agent connects when it serves SSH, to push its [`Notice`](crate::notice::Notice)s.
pub const NOTICES: u32 = 1024;
