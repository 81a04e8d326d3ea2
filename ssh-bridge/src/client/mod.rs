//! An SSH client for sandboxes: one connection, the host key pinned, any number of sessions.
//!
//! All sessions of a connection share its `receive_limit`: one whose output nobody takes eventually holds up the others.
//! Whatever must not wait for another's reader gets a connection of its own; the socket is local, so that is cheap.

mod attach;
mod detach;
mod exit;
mod gate;
mod handler;
mod session;
mod stdio;
pub(crate) mod terminal;
mod transport;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::client::Handle;
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use russh::{Disconnect, Preferred, cipher, compression, kex};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

pub use attach::AttachEnd;
pub use detach::{DetachKeys, DetachKeysError};
pub use exit::ExitStatus;
pub use session::{
    PreparedSession, Program, Session, SessionControl, SessionEvent, SessionEvents, SessionStdin, SpawnOptions,
};
pub use stdio::Stdio;
pub use terminal::Pty;

use crate::sftp::{SftpClient, SftpError};
use gate::Gate;
use handler::{ClientHandler, HandlerError, Shared};
use transport::Transport;

/// Bytes a channel may receive before it must be granted more.
const WINDOW: u32 = 2 * 1024 * 1024;

/// The type of a terminal of which nothing is known.
const DEFAULT_TERM: &str = "xterm";

/// How long a farewell may take. The guest notices the end of the stream anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a client could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The guest has another host key than the one made for it.
    #[error(
        "the guest's host key is {presented}, not the pinned {expected}: \
         whatever answers is not this sandbox, nothing was sent to it"
    )]
    HostKey {
        /// The fingerprint of the key it showed.
        presented: String,
        /// The fingerprint of the sandbox's key.
        expected: String,
    },
    /// The guest accepts no login of this user with this key. It does not say which of the two it is.
    #[error(
        "the guest refused to log in {user:?} with the key {key}: it has no such user, or the key is not among the \
         sandbox's authorized keys"
    )]
    Login {
        /// The user.
        user: String,
        /// The fingerprint of the key.
        key: String,
    },
    /// The guest did not get through the SSH handshake in time.
    #[error("the guest did not complete the SSH handshake within {} s: see `msb logs`", waited.as_secs_f32())]
    HandshakeTimeout {
        /// How long it was waited.
        waited: Duration,
    },
    /// The SSH handshake failed.
    #[error("the SSH handshake with the guest failed")]
    Handshake(#[source] russh::Error),
    /// The guest opens no further session.
    #[error("the guest refused to open a session")]
    Session(#[source] russh::Error),
    /// The guest refused what was asked for in a session.
    #[error("the guest refused to start {request}")]
    Refused {
        /// What was asked for.
        request: &'static str,
    },
    /// The connection ended before the guest said how the program did.
    #[error("the connection to the guest was lost: the sandbox may have stopped, see `msb logs`")]
    ConnectionLost {
        /// What broke it, where that is known.
        #[source]
        source: Option<Arc<russh::Error>>,
    },
    /// A command printed more than may be collected.
    #[error("the command printed more than {limit} bytes: raise `output_limit`, or read its output as it comes")]
    OutputTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The local input broke.
    #[error("cannot read standard input")]
    LocalRead {
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A local output takes no more; [`io::ErrorKind::BrokenPipe`] when its reader is gone.
    #[error("cannot write to standard {stream}")]
    LocalWrite {
        /// Which: `output` or `error`.
        stream: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The local terminal could not be used.
    #[error("cannot use standard input as a terminal")]
    Terminal(#[source] io::Error),
    /// A signal ended an attached session. The terminal has its modes again.
    #[error("{signal} ended the session")]
    Interrupted {
        /// The signal's name.
        signal: &'static str,
    },
}

/// Who logs in where.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The user in the guest.
    pub user: String,
    /// The key to log in with.
    pub key: PrivateKey,
    /// The guest's host key. Any other is an error.
    pub host_key: PublicKey,
    /// How long handshake and login may take together.
    pub handshake_timeout: Duration,
    /// Bytes of received data that the connection's sessions may hold together. One packet more is possible.
    pub receive_limit: usize,
    /// The type of terminals whose session names none. Default: for [`SshClient::attach`] `TERM` of this process, else
    /// `xterm`.
    pub term: Option<String>,
    /// Whether [`SshClient::sftp`] opens sessions. The guest serves SFTP whatever this says.
    pub sftp: bool,
}

impl ClientConfig {
    /// With a handshake of at most 30 s, 8 MiB of received data, and SFTP.
    pub fn new(user: impl Into<String>, key: PrivateKey, host_key: PublicKey) -> Self {
        Self {
            user: user.into(),
            key,
            host_key,
            handshake_timeout: Duration::from_secs(30),
            receive_limit: 8 * 1024 * 1024,
            term: None,
            sftp: true,
        }
    }
}

/// How a command is run whose output is collected.
#[derive(Clone, Debug)]
pub struct SshExecOptions {
    /// Whether it gets a terminal, which then carries its standard error too.
    pub tty: bool,
    /// Its environment, on top of what the login sets.
    pub env: Vec<(String, String)>,
    /// Its standard input.
    pub stdin: Bytes,
    /// The most bytes of output to collect, standard output and error together.
    pub output_limit: usize,
}

impl Default for SshExecOptions {
    fn default() -> Self {
        Self {
            tty: false,
            env: Vec::new(),
            stdin: Bytes::new(),
            output_limit: 64 * 1024 * 1024,
        }
    }
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SshOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// How the local terminal is attached to a session.
#[derive(Clone, Debug, Default)]
pub struct SshAttachOptions {
    /// The terminal's type. Default: [`ClientConfig::term`].
    pub term: Option<String>,
    /// The keys that leave the session. Default: none, every key goes to the guest.
    pub detach_keys: Option<DetachKeys>,
    /// The session's environment, on top of what the login sets.
    pub env: Vec<(String, String)>,
}

/// A connection to the SSH server of a guest. Dropped, it ends once its sessions have.
pub struct SshClient {
    handle: Handle<ClientHandler>,
    shared: Arc<Shared>,
    term: Option<String>,
    sftp: bool,
}

impl std::fmt::Debug for SshClient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SshClient")
            .field("is_closed", &self.handle.is_closed())
            .finish_non_exhaustive()
    }
}

impl SshClient {
    /// Shakes hands over `stream` and logs in.
    ///
    /// # Errors
    /// When the host key is another, the login is refused, or the guest does not speak SSH in time.
    pub async fn connect<S>(stream: S, config: ClientConfig) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let waited = config.handshake_timeout;
        match tokio::time::timeout(waited, Self::shake_hands(stream, config)).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::HandshakeTimeout { waited }),
        }
    }

    async fn shake_hands<S>(stream: S, config: ClientConfig) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ClientConfig {
            user,
            key,
            host_key,
            receive_limit,
            term,
            sftp,
            handshake_timeout: _,
        } = config;
        let gate = Arc::new(Gate::new(WINDOW, receive_limit));
        let shared = Arc::new(Shared::new(Arc::clone(&gate)));
        let handler = ClientHandler::new(host_key.clone(), Arc::clone(&shared));
        let connected =
            russh::client::connect_stream(Arc::new(preferences(&host_key)), Transport::new(stream, gate), handler);
        let mut handle = connected.await.map_err(|error| match error {
            HandlerError::Ssh(error) => ClientError::Handshake(error),
            HandlerError::HostKey { presented } => ClientError::HostKey {
                presented: crate::keys::fingerprint(&presented),
                expected: crate::keys::fingerprint(&host_key),
            },
        })?;
        let fingerprint = crate::keys::fingerprint(key.public_key());
        // The guest's agent accepts SHA-512 signatures of RSA keys; other keys have no choice of hash.
        let hash = key.algorithm().is_rsa().then_some(russh::keys::HashAlg::Sha512);
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        let login = handle
            .authenticate_publickey(&user, key)
            .await
            .map_err(ClientError::Handshake)?;
        if !login.success() {
            return Err(ClientError::Login { user, key: fingerprint });
        }
        Ok(Self {
            handle,
            shared,
            term,
            sftp,
        })
    }

    /// Starts a program and leaves its streams to the caller.
    ///
    /// # Errors
    /// When the guest refuses, or the connection breaks.
    pub async fn spawn(&self, program: &Program, options: &SpawnOptions) -> Result<Session, ClientError> {
        self.prepare().await?.start(program, options).await
    }

    /// Opens a session and starts nothing in it yet.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub async fn prepare(&self) -> Result<PreparedSession, ClientError> {
        let opened = self.handle.channel_open_session().await;
        let channel = match opened {
            Ok(channel) => channel,
            Err(_) if self.handle.is_closed() => {
                return Err(ClientError::ConnectionLost {
                    source: self.shared.cause(),
                });
            }
            Err(error) => return Err(ClientError::Session(error)),
        };
        // The read half is not used: what arrives comes through the handler, which never waits.
        let (_, channel) = channel.split();
        Ok(PreparedSession::new(channel, Arc::clone(&self.shared)))
    }

    /// Runs a command and collects what it prints.
    ///
    /// # Errors
    /// When the guest refuses, the connection breaks, or the output is larger than its limit.
    pub async fn exec(&self, command: impl Into<Vec<u8>>, options: SshExecOptions) -> Result<SshOutput, ClientError> {
        let SshExecOptions {
            tty,
            env,
            stdin: input,
            output_limit,
        } = options;
        let tty = tty.then(|| Pty::new(self.term.as_deref().unwrap_or(DEFAULT_TERM), 80, 24));
        let session = self
            .spawn(&Program::Exec(command.into()), &SpawnOptions { tty, env })
            .await?;
        let Session {
            mut stdin, mut events, ..
        } = session;
        let feed = async {
            // A command need not read its input; how it ends is told by its events.
            if stdin.write_all(&input).await.is_ok() {
                let _ = stdin.shutdown().await;
            }
            std::future::pending().await
        };
        tokio::select! {
            output = collect(&mut events, output_limit) => output,
            never = feed => never,
        }
    }

    /// Runs a program on local streams until it ends; with `tty`, their terminal is in raw mode meanwhile.
    ///
    /// # Errors
    /// When the guest refuses, the connection breaks, a local stream does, or `tty` is set and standard input is no
    /// terminal.
    pub async fn copy_stdio(
        &self,
        program: &Program,
        tty: bool,
        env: &[(String, String)],
        stdio: &Stdio,
    ) -> Result<ExitStatus, ClientError> {
        if tty {
            let options = SshAttachOptions {
                env: env.to_vec(),
                ..SshAttachOptions::default()
            };
            return match self.attach_program(program, options, stdio).await? {
                AttachEnd::Exited(status) => Ok(status),
                AttachEnd::Detached => Ok(ExitStatus::Unknown),
            };
        }
        self.prepare().await?.copy_stdio(program, env, stdio).await
    }

    /// Attaches the local terminal to the user's login shell.
    ///
    /// While it lasts, SIGTERM and SIGHUP end it with an error instead of this process, so that the terminal gets its
    /// modes back; the runtime keeps these signals from ending the process afterwards, too.
    ///
    /// # Errors
    /// When standard input is no terminal, the guest refuses, or the connection breaks.
    pub async fn attach(&self, options: SshAttachOptions) -> Result<AttachEnd, ClientError> {
        let stdio = Stdio::inherit().map_err(ClientError::Terminal)?;
        self.attach_program(&Program::Shell, options, &stdio).await
    }

    /// As [`Self::attach`], with any program and any streams.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub async fn attach_program(
        &self,
        program: &Program,
        options: SshAttachOptions,
        stdio: &Stdio,
    ) -> Result<AttachEnd, ClientError> {
        let SshAttachOptions { term, detach_keys, env } = options;
        let terminal = stdio
            .terminal()
            .ok_or_else(|| ClientError::Terminal(rustix::io::Errno::NOTTY.into()))?;
        let term = term
            .or_else(|| self.term.clone())
            .or_else(|| std::env::var("TERM").ok())
            .unwrap_or_else(|| DEFAULT_TERM.to_owned());
        let tty = Pty::like(terminal, term).map_err(ClientError::Terminal)?;
        let session = self.spawn(program, &SpawnOptions { tty: Some(tty), env }).await?;
        attach::copy_terminal(session, stdio, terminal, detach_keys).await
    }

    /// Opens an SFTP session.
    ///
    /// # Errors
    /// When the client was opened without SFTP, the guest refuses, or the connection breaks.
    pub async fn sftp(&self) -> Result<SftpClient, SftpError> {
        if !self.sftp {
            return Err(SftpError::Disabled);
        }
        SftpClient::open(self).await
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Waits until the connection has ended. After that it is not to be called again.
    pub async fn ended(&mut self) {
        // Why it ended is told to the sessions.
        let _ = (&mut self.handle).await;
    }

    /// Says good-bye and ends the connection with all its sessions.
    pub async fn close(self) {
        let Self { handle, .. } = self;
        let farewell = async {
            if handle.disconnect(Disconnect::ByApplication, "", "en").await.is_ok() {
                let _ = handle.await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, farewell).await;
    }
}

async fn collect(events: &mut SessionEvents, limit: usize) -> Result<SshOutput, ClientError> {
    let mut output = SshOutput {
        status: ExitStatus::Unknown,
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    while let Some(event) = events.next().await? {
        let (stream, data) = match event {
            SessionEvent::Stdout(data) => (&mut output.stdout, data),
            SessionEvent::Stderr(data) => (&mut output.stderr, data),
            SessionEvent::Eof => continue,
            SessionEvent::Exit(status) => {
                output.status = status;
                continue;
            }
        };
        stream.extend_from_slice(&data);
        if output.stdout.len() + output.stderr.len() > limit {
            return Err(ClientError::OutputTooLarge { limit });
        }
    }
    Ok(output)
}

/// What the client offers: only the pinned key's algorithm, and AES-GCM, which processors have instructions for, first.
fn preferences(host_key: &PublicKey) -> russh::client::Config {
    let key: Cow<'static, [Algorithm]> = match host_key.algorithm() {
        Algorithm::Rsa { .. } => Preferred::DEFAULT.key,
        algorithm => Cow::Owned(vec![algorithm]),
    };
    russh::client::Config {
        window_size: WINDOW,
        preferred: Preferred {
            key,
            cipher: Cow::Borrowed(CIPHERS),
            kex: Cow::Borrowed(KEX),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        ..russh::client::Config::default()
    }
}

const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::MLKEM768X25519_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];
