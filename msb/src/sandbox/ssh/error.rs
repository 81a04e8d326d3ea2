//! Why there is no SSH connection.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use msb_ssh::client::ClientError;
use msb_ssh::keys::KeyError;
use msb_ssh::preamble::{MAX_AUTHORIZED_KEYS, PreambleError};
use msb_ssh::vsock::ConnectError;
use tokio::task::JoinError;

use crate::store::StoreError;
use crate::store::files::FileError;
use crate::store::names::Name;

/// Why there is no SSH connection.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// It does not run.
    #[error("it is {state}{}; start it with `msb start {label}`", because(.message))]
    NotRunning {
        /// What to call it.
        label: String,
        /// What it is instead.
        state: &'static str,
        /// How that came to be.
        message: Option<String>,
    },
    /// It stands still.
    #[error("it is paused; let it go on with `msb resume {label}`")]
    Paused {
        /// What to call it.
        label: String,
    },
    /// It is nobody's.
    #[error("it waits in the pool {pool}, for who takes it with `msb create --pool {pool}`")]
    Waiting {
        /// The pool.
        pool: Name,
    },
    /// It is not ready yet.
    #[error("its guest did not get ready within {} s; see `msb logs {label}`", timeout.as_secs_f32())]
    NotReady {
        /// What to call it.
        label: String,
        /// How long it was waited.
        timeout: Duration,
    },
    /// The store cannot say.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pinned host key is none.
    #[error("{} is no public key; the sandbox is damaged, make a new one", .0.display())]
    HostKey(PathBuf),
    /// The guest cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stream to the guest cannot be used.
    #[error("cannot use the stream to the guest")]
    Stream(#[source] io::Error),
    /// What waited for the guest was ended.
    #[error("the connection was given up")]
    GivenUp(#[from] JoinError),
    /// There is no SSH session over the stream.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The guest does not serve a connection as it should.
    #[error(transparent)]
    Preamble(#[from] PreambleError),
    /// A file of authorized keys is none.
    #[error("{} is no file of at most {MAX_AUTHORIZED_KEYS} bytes, as authorized keys are in", .0.display())]
    AuthorizedKeys(PathBuf),
    /// The endpoint is closed.
    #[error("the endpoint was closed")]
    Closed,
}

impl SshError {
    /// Whether the sandbox should be reachable and is not: what ssh has its exit status 255 for.
    pub fn is_transport(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Stream(_) => true,
            Self::Preamble(PreambleError::Stream(_) | PreambleError::Deadline(_)) => true,
            Self::Client(error) => is_transport(error),
            _ => false,
        }
    }
}

/// Whether the connection itself failed, rather than what was done over it.
pub(crate) fn is_transport(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::HostKey { .. }
            | ClientError::Login { .. }
            | ClientError::HandshakeTimeout { .. }
            | ClientError::Handshake(_)
            | ClientError::ConnectionLost { .. }
    )
}

fn because(message: &Option<String>) -> String {
    message
        .as_ref()
        .map(|message| format!(" ({message})"))
        .unwrap_or_default()
}
