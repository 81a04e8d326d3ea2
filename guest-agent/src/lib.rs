//! PID 1 and SSH server of an msb guest.
//!
//! Five programs in one binary, because a guest needs nothing else: [`init`] is PID 1, [`session`] serves one SSH
//! connection, [`sftp`], [`watch`] and [`processes`] are the servers of files, of what changes in them, and of processes that a
//! session starts as the login user.
//! All but the first run on any Linux.

pub mod authorized_keys;
pub mod console;
pub mod exec;
pub mod init;
pub mod net;
pub mod processes;
mod pty;
pub mod session;
pub mod sftp;
mod shell;
mod signal_fd;
mod signal_names;
mod syscall;
pub mod users;
pub mod watch;
