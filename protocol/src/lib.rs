//! What the host and the guest agent of msb must agree on, and nothing else: vsock ports, the notices the agent pushes,
//! the identity the host prepares for a guest, how both SSH ends bound what a stalled channel holds, and the numbers of SFTP.

pub mod identity;
pub mod notice;
pub mod ports;
pub mod receive_budget;
pub mod sftp;
