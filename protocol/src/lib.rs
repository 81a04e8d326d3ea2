//! What the host and the guest agent of msb must agree on, and nothing else: vsock ports, the notices the agent pushes,
//! the identity the host prepares for a guest and renews when it is restored, how both SSH ends bound what a stalled
//! channel holds, the numbers and file attributes of SFTP, what comes ahead of the connection of a prepared endpoint, and the
//! subsystems that manage processes, watch files and take layers.

pub mod frame;
pub mod identity;
pub mod layer;
pub mod notice;
pub mod ports;
pub mod process;
pub mod ready;
pub mod receive_budget;
pub mod renewal;
pub mod server_preamble;
pub mod sftp;
pub mod watch;
mod wire;
