//! The vsock ports of a sandbox.

/// Guest port on which the agent serves SSH.
pub const SSH: u32 = 22;

/// Guest port on which the agent serves SSH as a [preamble](crate::server_preamble) says that comes first.
pub const PREPARED_SSH: u32 = 122;

/// Host port to which the agent connects when it serves SSH, to push its [`Notice`](crate::notice::Notice)s.
pub const NOTICES: u32 = 1024;
