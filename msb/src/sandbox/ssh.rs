//! SSH into a sandbox.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use msb_protocol::ports;
use msb_ssh::client::{ClientConfig, ClientError, SshClient};
use msb_ssh::keys::{KeyError, KeyPair, PublicKey};
use msb_ssh::vsock::{self, ConnectError};
use tokio::net::UnixStream;
use tokio::task::{JoinError, spawn_blocking};

use super::Sandbox;
use super::records::RunRecord;
use super::state::State;
use crate::store::StoreError;
use crate::store::files::{self, FileError};

/// How to connect.
#[derive(Clone, Debug)]
pub struct SshConnectOptions {
    /// The user in the guest.
    pub user: String,
    /// How long a sandbox that is starting may take until it serves SSH.
    pub boot_timeout: Duration,
    /// How long the guest may take to accept a connection.
    pub connect_timeout: Duration,
}

impl Default for SshConnectOptions {
    fn default() -> Self {
        Self {
            user: "root".into(),
            boot_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(30),
        }
    }
}

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
}

impl SshError {
    /// Whether the sandbox should be reachable and is not: what ssh has its exit status 255 for.
    pub fn is_transport(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Stream(_) => true,
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

impl Sandbox {
    /// Connects with msb's own key. The host key is the one that was made with the sandbox.
    ///
    /// # Errors
    /// When it does not run, does not get ready, or cannot be logged in to.
    pub async fn ssh_connect(&self, options: &SshConnectOptions) -> Result<SshClient, SshError> {
        let (sandbox, timeouts) = (self.clone(), (options.boot_timeout, options.connect_timeout));
        let stream = spawn_blocking(move || sandbox.ssh_stream(timeouts.0, timeouts.1)).await??;
        stream.set_nonblocking(true).map_err(SshError::Stream)?;
        let stream = UnixStream::from_std(stream).map_err(SshError::Stream)?;
        let key = KeyPair::load(&self.store().layout().client_key())?;
        let config = ClientConfig::new(options.user.clone(), key.private_key().clone(), self.host_key()?);
        Ok(SshClient::connect(stream, config).await?)
    }

    /// Opens a stream to the SSH server of the guest, a blocking one. Blocks while the sandbox is starting.
    ///
    /// # Errors
    /// When it does not run, does not get ready, or does not accept the connection in time.
    pub fn ssh_stream(
        &self,
        boot_timeout: Duration,
        connect_timeout: Duration,
    ) -> Result<std::os::unix::net::UnixStream, SshError> {
        let run = self.running(boot_timeout)?;
        Ok(vsock::connect(&run.socket, ports::SSH, connect_timeout)?)
    }

    /// The public half of the guest's host key.
    fn host_key(&self) -> Result<PublicKey, SshError> {
        let path = self.dir().host_key_pub();
        let line = files::read_optional(&path)?.and_then(|line| String::from_utf8(line).ok());
        line.and_then(|line| PublicKey::from_openssh(line.trim()).ok())
            .ok_or(SshError::HostKey(path))
    }

    /// The run that serves SSH. Blocks while the sandbox is starting, up to `timeout`.
    ///
    /// # Errors
    /// When it does not run or does not get ready.
    pub fn running(&self, timeout: Duration) -> Result<RunRecord, SshError> {
        let state = self.wait_until(timeout, |state| !matches!(state, State::Starting { .. }))?;
        let label = self.label().to_owned();
        match state {
            State::Running { run, .. } => Ok(run),
            State::Starting { .. } => Err(SshError::NotReady { label, timeout }),
            state => {
                let message = state.message().map(str::to_owned);
                Err(SshError::NotRunning {
                    label,
                    state: state.word(),
                    message,
                })
            }
        }
    }
}
