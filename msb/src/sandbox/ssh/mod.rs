//! SSH into a sandbox, from this program: [`Sandbox::ssh`].
//!
//! A client logs in with msb's own key and accepts exactly the host key that was made with the sandbox. What it can do
//! is [`SshClient`]'s: collect a command's output, stream it, attach the terminal, open [`sftp`].

mod error;
mod server;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use msb_protocol::ports;
use msb_ssh::client::ClientConfig;
use msb_ssh::keys::{KeyPair, PublicKey};
use msb_ssh::{preamble, vsock};
use tokio::task::spawn_blocking;

use super::Sandbox;
use super::records::RunRecord;
use super::state::State;
use crate::store::files;

pub use error::SshError;
pub(crate) use error::is_transport;
pub use msb_ssh::client::{
    AttachEnd, ClientError, DetachKeys, ExitStatus, PreparedSession, Program, Pty, Session, SessionControl,
    SessionEvent, SessionEvents, SessionStdin, SpawnOptions, SshAttachOptions, SshClient, SshExecOptions, SshOutput,
    Stdio,
};
pub use msb_ssh::sftp;
use server::SignedPreamble;
pub use server::{SshServer, SshServerOptions};

/// How long a sandbox that is starting may take until it serves SSH.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a guest may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How to connect.
#[derive(Clone, Debug)]
pub struct SshClientOptions {
    /// The user in the guest.
    pub user: String,
    /// The type of terminals. Default: `TERM` of this process for an attached one, else `xterm`.
    pub term: Option<String>,
    /// Whether the client opens SFTP sessions. The guest serves them to others whatever this says.
    pub sftp: bool,
    /// How long a sandbox that is starting may take until it serves SSH.
    pub boot_timeout: Duration,
    /// How long the guest may take to accept a connection.
    pub connect_timeout: Duration,
}

impl Default for SshClientOptions {
    fn default() -> Self {
        Self {
            user: "root".into(),
            term: None,
            sftp: true,
            boot_timeout: BOOT_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }
}

/// SSH of one sandbox: clients in this program, and endpoints for other clients.
#[derive(Clone, Debug)]
pub struct SshAccess {
    sandbox: Sandbox,
}

impl SshAccess {
    /// Connects, and logs in with msb's own key. The host key is the one that was made with the sandbox.
    ///
    /// # Errors
    /// When the sandbox does not run, does not get ready, or cannot be logged in to.
    pub async fn open_client(&self, options: SshClientOptions) -> Result<SshClient, SshError> {
        let SshClientOptions {
            user,
            term,
            sftp,
            boot_timeout,
            connect_timeout,
        } = options;
        let stream = self.stream(boot_timeout, connect_timeout).await?;
        stream.set_nonblocking(true).map_err(SshError::Stream)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(SshError::Stream)?;
        let key = KeyPair::load(&self.sandbox.store().layout().client_key())?;
        let config = ClientConfig {
            term,
            sftp,
            ..ClientConfig::new(user, key.private_key().clone(), self.sandbox.host_key()?)
        };
        Ok(SshClient::connect(stream, config).await?)
    }

    /// Prepares an endpoint, over which any SSH client reaches the guest.
    ///
    /// # Errors
    /// When the sandbox does not run or does not get ready, or a file that the options name cannot be used.
    pub async fn prepare_server(&self, options: SshServerOptions) -> Result<SshServer, SshError> {
        SshServer::prepare(self.clone(), options).await
    }

    /// As [`Self::stream`], served as `preamble` says.
    async fn prepared_stream(
        &self,
        preamble: Arc<SignedPreamble>,
        boot_timeout: Duration,
        connect_timeout: Duration,
    ) -> Result<UnixStream, SshError> {
        let sandbox = self.sandbox.clone();
        let open = move || {
            let stream = sandbox.stream_to(ports::PREPARED_SSH, boot_timeout, connect_timeout)?;
            preamble::send(&stream, &preamble, connect_timeout)?;
            Ok(stream)
        };
        spawn_blocking(open).await?
    }

    /// A stream to the SSH server of the guest, a blocking one.
    async fn stream(&self, boot_timeout: Duration, connect_timeout: Duration) -> Result<UnixStream, SshError> {
        let sandbox = self.sandbox.clone();
        spawn_blocking(move || sandbox.ssh_stream(boot_timeout, connect_timeout)).await?
    }
}

impl Sandbox {
    /// SSH into it. It may be stopped and started again meanwhile.
    pub fn ssh(&self) -> SshAccess {
        SshAccess { sandbox: self.clone() }
    }

    /// Opens a stream to the SSH server of the guest, a blocking one. Blocks while the sandbox is starting.
    ///
    /// # Errors
    /// When it does not run, does not get ready, or does not accept the connection in time.
    pub fn ssh_stream(&self, boot_timeout: Duration, connect_timeout: Duration) -> Result<UnixStream, SshError> {
        self.stream_to(ports::SSH, boot_timeout, connect_timeout)
    }

    fn stream_to(&self, port: u32, boot_timeout: Duration, connect_timeout: Duration) -> Result<UnixStream, SshError> {
        let run = self.running(boot_timeout)?;
        Ok(vsock::connect(&run.socket, port, connect_timeout)?)
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
            State::Paused { .. } => Err(SshError::Paused { label }),
            State::Waiting { pool, .. } => Err(SshError::Waiting { pool: pool.name }),
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
