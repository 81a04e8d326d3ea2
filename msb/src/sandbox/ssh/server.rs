//! Endpoints for SSH clients outside of this program.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use msb_ssh::keys::{self, KeyError, KeyPair};
use msb_ssh::serve;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::{BOOT_TIMEOUT, CONNECT_TIMEOUT, SshAccess, SshError};

/// What an endpoint shall be.
///
/// The guest itself serves SSH, and an endpoint passes its bytes on: it has no keys, no users and no SFTP of its own. So
/// the first four options are what a caller may rely on, not what an endpoint sets: one that asks for something else than
/// the sandbox was created with is refused, never ignored.
#[derive(Clone, Debug)]
pub struct SshServerOptions {
    /// The host key that clients shall see, a private or a public one. Default: that of the sandbox, whichever it is.
    pub host_key_path: Option<PathBuf>,
    /// The keys that alone may log in. Only `None` is possible: a sandbox has its keys from its creation.
    pub authorized_keys_path: Option<PathBuf>,
    /// The user that commands run as. Only `None` is possible: the client names its user.
    pub user: Option<String>,
    /// Whether there is SFTP. Only `true` is possible: what a user may do to files is the guest kernel's decision.
    pub sftp: bool,
    /// How long a sandbox that is starting may take until it serves SSH.
    pub boot_timeout: Duration,
    /// How long the guest may take to accept a connection.
    pub connect_timeout: Duration,
}

impl Default for SshServerOptions {
    fn default() -> Self {
        Self {
            host_key_path: None,
            authorized_keys_path: None,
            user: None,
            sftp: true,
            boot_timeout: BOOT_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }
}

/// An endpoint of a sandbox, for any number of connections. Clones are the same endpoint.
///
/// Each connection finds the sandbox anew, so an endpoint outlives a restart. It is closed by [`SshServer::close`], not
/// by a drop.
#[derive(Clone, Debug)]
pub struct SshServer {
    access: SshAccess,
    boot_timeout: Duration,
    connect_timeout: Duration,
    closed: Arc<watch::Sender<bool>>,
}

impl SshServer {
    pub(super) async fn prepare(access: SshAccess, options: SshServerOptions) -> Result<Self, SshError> {
        let SshServerOptions {
            host_key_path,
            authorized_keys_path,
            user,
            sftp,
            boot_timeout,
            connect_timeout,
        } = options;
        if let Some(path) = host_key_path {
            check_host_key(&access, &path)?;
        }
        if authorized_keys_path.is_some() {
            return Err(SshError::FixedInGuest {
                option: "authorized_keys_path",
                instead: "give the keys to `Sandbox::create`, or `msb create --authorized-key`",
            });
        }
        if user.is_some() {
            return Err(SshError::FixedInGuest {
                option: "user",
                instead: "the client names it, as in `ssh USER@HOST`",
            });
        }
        if !sftp {
            return Err(SshError::FixedInGuest {
                option: "sftp: false",
                instead: "create the sandbox without it (`SandboxSpec::ssh`, or `msb create --no-sftp`)",
            });
        }
        let sandbox = access.sandbox.clone();
        spawn_blocking(move || sandbox.running(boot_timeout)).await??;
        Ok(Self {
            access,
            boot_timeout,
            connect_timeout,
            closed: Arc::new(watch::channel(false).0),
        })
    }

    /// Serves one connection over standard input and output of this process, until both directions ended. They are
    /// `/dev/null` afterwards, so a process has one such connection.
    ///
    /// # Errors
    /// When the sandbox cannot be reached, a stream breaks, or the endpoint is closed.
    pub async fn serve_connection(&self) -> Result<(), SshError> {
        let mut closed = self.closed.subscribe();
        let guest = self.connect().await?;
        let end = guest.try_clone().map_err(SshError::Stream)?;
        let pump = spawn_blocking(move || serve::serve_connection_stdio(guest));
        tokio::pin!(pump);
        tokio::select! {
            result = &mut pump => return ended(result?.map(drop)),
            _ = closed.wait_for(|closed| *closed) => {}
        }
        // The pump ends with its stream to the guest.
        let _ = end.shutdown(Shutdown::Both);
        let _ = pump.await?;
        Err(SshError::Closed)
    }

    /// Serves one connection over any stream, until both directions ended.
    ///
    /// # Errors
    /// As [`Self::serve_connection`].
    pub async fn serve_connection_on<S>(&self, stream: S) -> Result<(), SshError>
    where
        S: AsyncRead + AsyncWrite,
    {
        let mut closed = self.closed.subscribe();
        let guest = self.connect().await?;
        tokio::select! {
            result = serve::serve_connection_on(guest, stream) => ended(result),
            _ = closed.wait_for(|closed| *closed) => Err(SshError::Closed),
        }
    }

    /// Ends the connections of this endpoint and of its clones, and takes no more.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    async fn connect(&self) -> Result<UnixStream, SshError> {
        if *self.closed.borrow() {
            return Err(SshError::Closed);
        }
        self.access.stream(self.boot_timeout, self.connect_timeout).await
    }
}

fn ended(result: io::Result<()>) -> Result<(), SshError> {
    result.map_err(SshError::Stream)
}

/// Whether clients will see the key in the file at `path`.
fn check_host_key(access: &SshAccess, path: &Path) -> Result<(), SshError> {
    let asked = match KeyPair::load(path) {
        Ok(pair) => pair.public_key().clone(),
        Err(not_private) => keys::load_public(path).map_err(|_| match not_private {
            KeyError::Malformed { path, .. } => SshError::NoKey(path),
            other => other.into(),
        })?,
    };
    if asked.key_data() == access.sandbox.host_key()?.key_data() {
        return Ok(());
    }
    Err(SshError::FixedInGuest {
        option: "another host_key_path",
        instead: "clients see the key that was made with the sandbox, which `known_hosts` of the store pins",
    })
}
