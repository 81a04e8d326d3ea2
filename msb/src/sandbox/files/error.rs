//! Why something could not be done with a file of a sandbox.

use msb_ssh::sftp::SftpError;
use msb_ssh::sftp::tree::TreeError;
use msb_ssh::watch::WatchError;

use super::super::ssh::SshError;

/// Why something could not be done with a file of a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is no connection.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The file, or the session.
    #[error(transparent)]
    Sftp(#[from] SftpError),
    /// The copy of a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The watching.
    #[error(transparent)]
    Watch(#[from] WatchError),
}

impl FilesError {
    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        self.sftp().is_some_and(SftpError::is_not_found)
    }

    /// Whether the session ended, so that nothing else would succeed on it.
    pub(super) fn is_end(&self) -> bool {
        self.sftp().is_some_and(SftpError::is_end)
    }

    fn sftp(&self) -> Option<&SftpError> {
        match self {
            Self::Sftp(error) | Self::Tree(TreeError::Sftp(error)) => Some(error),
            _ => None,
        }
    }
}
