//! PID 1 and SSH server of an msb guest.
//!
//! Three programs in one binary, because a guest needs nothing else: [`init`] is PID 1, [`session`] serves one SSH
//! connection, [`sftp`] is the SFTP server that a session starts as the login user. The last two run on any Linux.

pub mod authorized_keys;
pub mod console;
pub mod exec;
pub mod init;
pub mod net;
pub mod session;
pub mod sftp;
pub mod users;
