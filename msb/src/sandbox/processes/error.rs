//! Why something could not be done with a process of a sandbox.

use msb_ssh::process::ProcessError;

use super::super::ssh::{SshError, is_transport};

/// Why something could not be done with a process of a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no connection.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The process, or what was asked of it.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

impl CommandError {
    /// Whether the connection itself failed: what ssh has its exit status 255 for.
    pub fn is_transport(&self) -> bool {
        match self {
            Self::Ssh(error) => error.is_transport(),
            Self::Process(ProcessError::Client(error)) => is_transport(error),
            Self::Process(_) => false,
        }
    }

    /// Whether there is no such process.
    pub fn is_no_process(&self) -> bool {
        matches!(self, Self::Process(error) if error.is_no_process())
    }
}
