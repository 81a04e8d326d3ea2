//! PID 1 and SSH server of an msb guest.
//!
//! Seven programs in one binary, because a guest needs nothing else: [`init`] is PID 1, [`session`] serves one SSH
//! connection, [`sftp`], [`watch`], [`processes`], [`layer`] and [`ready`] are the servers of files, of what changes in them, of
//! processes, of layers and of what is waited for, that a session starts as the login user.
//! All but the first run on any Linux.

pub mod authorized_keys;
pub mod console;
pub mod exec;
pub mod init;
pub mod layer;
pub mod net;
pub mod processes;
mod pty;
pub mod ready;
pub mod session;
pub mod sftp;
mod shell;
mod signal_fd;
mod signal_names;
mod syscall;
pub mod users;
pub mod watch;
