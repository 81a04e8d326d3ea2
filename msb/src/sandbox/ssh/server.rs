//! Endpoints for SSH clients outside of this program.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use msb_ssh::keys::{KeyError, KeyPair};
use msb_ssh::preamble::{self, MAX_AUTHORIZED_KEYS, ServerOptions};
use msb_ssh::serve;
use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{BOOT_TIMEOUT, CONNECT_TIMEOUT, SshAccess, SshError};
use crate::sandbox::Sandbox;

/// What the connections of an endpoint are served with.
///
/// The guest serves SSH, and an endpoint passes its bytes on. It tells the guest these options ahead of each connection;
/// other connections to the sandbox are served as before.
#[derive(Clone, Debug)]
pub struct SshServerOptions {
    /// A file with the private host key that clients see, in OpenSSH's format and for its owner alone. Default: the
    /// sandbox's.
    pub host_key_path: Option<PathBuf>,
    /// A file with the keys that alone may log in, as sshd's `authorized_keys`. Default: the sandbox's, and those that
    /// users of the guest have in their own.
    pub authorized_keys_path: Option<PathBuf>,
    /// The user of the guest that everything runs as, whomever the client names. Default: the one that the client names.
    pub user: Option<String>,
    /// Whether there is SFTP. A sandbox that was made without it has none.
    pub sftp: bool,
    /// How long a sandbox that is starting may take until it serves SSH.
    pub boot_timeout: Duration,
    /// How long the guest may take to accept a connection, and then to take these options.
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

/// What the guest is told ahead of a connection. It may hold a private key.
pub(super) struct SignedPreamble(Zeroizing<Vec<u8>>);

impl Deref for SignedPreamble {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Without the secret.
impl fmt::Debug for SignedPreamble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedPreamble").finish_non_exhaustive()
    }
}

/// An endpoint of a sandbox, for any number of connections. Clones are the same endpoint.
///
/// Each connection finds the sandbox anew, so an endpoint outlives a restart. It is closed by [`SshServer::close`], not
/// by a drop.
#[derive(Clone, Debug)]
pub struct SshServer {
    access: SshAccess,
    /// Nothing when connections are served as any other.
    preamble: Option<Arc<SignedPreamble>>,
    boot_timeout: Duration,
    connect_timeout: Duration,
    closed: Arc<watch::Sender<bool>>,
}

impl SshServer {
    pub(super) async fn prepare(access: SshAccess, options: SshServerOptions) -> Result<Self, SshError> {
        let (boot_timeout, connect_timeout) = (options.boot_timeout, options.connect_timeout);
        let sandbox = access.sandbox.clone();
        let prepare = move || {
            let preamble = preamble(&sandbox, options)?;
            sandbox.running(boot_timeout)?;
            Ok::<_, SshError>(preamble)
        };
        let preamble = spawn_blocking(prepare).await??;
        Ok(Self {
            access,
            preamble,
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
        let (boot, connect) = (self.boot_timeout, self.connect_timeout);
        match &self.preamble {
            None => self.access.stream(boot, connect).await,
            Some(preamble) => self.access.prepared_stream(Arc::clone(preamble), boot, connect).await,
        }
    }
}

fn ended(result: io::Result<()>) -> Result<(), SshError> {
    result.map_err(SshError::Stream)
}

/// What the guest is told, if it is to do something else than usual.
fn preamble(sandbox: &Sandbox, options: SshServerOptions) -> Result<Option<Arc<SignedPreamble>>, SshError> {
    let host_key = |path: PathBuf| Ok::<_, SshError>(KeyPair::load_private(&path)?.to_openssh()?);
    let options = ServerOptions {
        host_key: options.host_key_path.map(host_key).transpose()?,
        authorized_keys: options.authorized_keys_path.map(read_authorized_keys).transpose()?,
        user: options.user,
        sftp: options.sftp,
    };
    if options == ServerOptions::default() {
        return Ok(None);
    }
    let own = KeyPair::load(&sandbox.dir().host_key())?;
    Ok(Some(Arc::new(SignedPreamble(preamble::sign(&options, &own)?))))
}

fn read_authorized_keys(path: PathBuf) -> Result<Vec<u8>, SshError> {
    let read = || {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        // A pipe in its place must not hold anybody up.
        let file = File::options().read(true).custom_flags(flags).open(&path)?;
        let is_file = file.metadata()?.is_file();
        let mut keys = Vec::new();
        file.take(MAX_AUTHORIZED_KEYS as u64 + 1).read_to_end(&mut keys)?;
        Ok((is_file && keys.len() <= MAX_AUTHORIZED_KEYS).then_some(keys))
    };
    let read: io::Result<_> = read();
    match read {
        Ok(keys) => keys.ok_or(SshError::AuthorizedKeys(path)),
        Err(source) => Err(KeyError::Read { path, source }.into()),
    }
}
