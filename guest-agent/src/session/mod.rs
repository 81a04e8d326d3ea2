//! One SSH connection: a russh server over any byte stream, whose sessions are processes of the login user.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use msb_protocol::identity::{ImageRoot, SshFeatures};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Certificate, PrivateKey};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::authorized_keys::AuthorizedKeys;
use crate::console;
use crate::net::FdStream;
use crate::users::User;

mod algorithms;
mod as_user;
mod auth;
mod budget;
mod channel;
mod channels;
mod conversation;
mod environment;
mod forward;
mod handler;
mod input;
mod outlet;
mod preamble;
mod process;
mod signals;
mod terminal;
mod transport;

use handler::Handler;
pub use preamble::PreambleError;
use transport::{Outbound, Transport};

/// How long a client has to log in, as in sshd.
const LOGIN_GRACE: Duration = Duration::from_secs(120);

/// How long a client that ended the connection has to close the stream.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long every refused login takes, so that its time tells nothing about users and keys.
const REJECTION_TIME: Duration = Duration::from_millis(20);

/// The window each channel opens with, in bytes.
const WINDOW: u32 = 2 << 20;

/// The largest packet asked for, in bytes.
const MAX_PACKET: u32 = 65_535;

/// What every connection is served with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settings {
    config: Arc<russh::server::Config>,
    authorized_keys: Arc<AuthorizedKeys>,
    environment: Arc<BTreeMap<String, String>>,
    features: SshFeatures,
    image: Option<Arc<ImageRoot>>,
    /// The user that everything runs as, whomever the client names.
    only_user: Option<Arc<str>>,
    login_grace: Duration,
    processes: PathBuf,
    end_guest: Option<fn()>,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opening {
    /// SSH.
    Ssh,
    /// A [preamble](msb_protocol::server_preamble), then SSH.
    Preamble,
}

/// Why SSH cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The host key is damaged, encrypted or of an unknown kind.
    #[error("the host key is no unencrypted private key in OpenSSH format")]
    HostKey(#[source] russh::keys::ssh_key::Error),
    /// The host certificate is damaged.
    #[error("the host certificate is no certificate in OpenSSH format")]
    HostCertificate(#[source] russh::keys::ssh_key::Error),
    /// The certificate is a user's, or of another key.
    #[error("the host certificate does not certify the host key: make it with ssh-keygen -h -s AUTHORITY HOST_KEY.pub")]
    OtherCertificate,
    /// A file named on the command line.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a connection ended early, or never began.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream or the runtime on it.
    #[error("cannot serve on this stream")]
    Stream(#[source] io::Error),
    /// The client did not log in within the grace time.
    #[error("no login within {} s", .0.as_secs())]
    LoginTimeout(Duration),
    /// The preamble.
    #[error("the preamble of the connection is not served")]
    Preamble(#[from] PreambleError),
    /// The SSH protocol.
    #[error("the SSH connection failed")]
    Ssh(#[from] russh::Error),
}

impl Settings {
    /// Settings for a host key in OpenSSH format and the contents of an `authorized_keys` file.
    ///
    /// # Errors
    /// When the host key cannot be used. Bad lines of `authorized_keys` are only logged.
    pub fn new(host_key: &[u8], authorized_keys: &[u8]) -> Result<Self, SettingsError> {
        Ok(Self {
            config: Arc::new(server_config(vec![parse_host_key(host_key)?])),
            authorized_keys: Arc::new(parse_authorized_keys(authorized_keys)),
            environment: Arc::default(),
            features: SshFeatures::default(),
            image: None,
            only_user: None,
            login_grace: LOGIN_GRACE,
            processes: crate::processes::default_directory(),
            end_guest: None,
        })
    }

    /// Settings from files, as for [`Settings::new`] and [`Settings::with_host_certificate`].
    ///
    /// # Errors
    /// As for these, and when a file cannot be read.
    pub fn read(
        host_key: &Path,
        host_certificate: Option<&Path>,
        authorized_keys: &Path,
    ) -> Result<Self, SettingsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| SettingsError::Read {
                path: path.into(),
                source,
            })
        };
        let settings = Self::new(&read(host_key)?, &read(authorized_keys)?)?;
        match host_certificate {
            Some(path) => settings.with_host_certificate(&read(path)?),
            None => Ok(settings),
        }
    }

    /// Shows clients a certificate of the host key, in OpenSSH format, besides the key.
    ///
    /// # Errors
    /// When it is none, or certifies something else.
    pub fn with_host_certificate(mut self, certificate: &[u8]) -> Result<Self, SettingsError> {
        let text = String::from_utf8_lossy(certificate);
        let certificate = Certificate::from_openssh(text.trim()).map_err(SettingsError::HostCertificate)?;
        let keys = self.config.keys.clone();
        let certifies = |key: &PrivateKey| key.public_key().key_data() == certificate.public_key();
        if certificate.cert_type() != CertType::Host || !keys.iter().any(certifies) {
            return Err(SettingsError::OtherCertificate);
        }
        self.config = Arc::new(russh::server::Config {
            certificates: vec![certificate],
            ..server_config(keys)
        });
        Ok(self)
    }

    /// Adds an environment to every session, beneath what the login itself sets.
    #[must_use]
    pub fn with_environment(mut self, environment: BTreeMap<String, String>) -> Self {
        self.environment = Arc::new(environment);
        self
    }

    /// Leaves out what the sandbox does not offer.
    #[must_use]
    pub fn with_features(mut self, features: SshFeatures) -> Self {
        self.features = features;
        self
    }

    /// Has sessions be those of an image: in its directory, and for its user, whom no account need describe.
    #[must_use]
    pub fn with_image(mut self, image: Option<ImageRoot>) -> Self {
        self.image = image.map(Arc::new);
        self
    }

    /// The login user `name`: one that the guest has, or the image's.
    fn user(&self, name: &str) -> Option<User> {
        match &self.image {
            Some(image) if image.user == name => User::by_spec(name),
            _ => User::by_name(name),
        }
    }

    /// Where the user's programs begin.
    fn working_dir(&self, user: &User) -> PathBuf {
        match &self.image {
            Some(image) if !image.working_dir.is_empty() => Path::new("/").join(&image.working_dir),
            _ => user.home.clone(),
        }
    }

    /// Gives a client less or more than the usual 120 seconds to log in.
    #[must_use]
    pub fn with_login_grace(mut self, grace: Duration) -> Self {
        self.login_grace = grace;
        self
    }

    /// Has the keepers of processes (`msb_protocol::process`) found in another directory.
    #[must_use]
    pub fn with_processes(mut self, directory: PathBuf) -> Self {
        self.processes = directory;
        self
    }

    /// Offers root the subsystem `shutdown@msb`, which calls `end_guest`.
    #[must_use]
    pub fn with_guest_end(mut self, end_guest: fn()) -> Self {
        self.end_guest = Some(end_guest);
        self
    }
}

fn parse_host_key(key: &[u8]) -> Result<PrivateKey, SettingsError> {
    let key = PrivateKey::from_openssh(key).map_err(SettingsError::HostKey)?;
    if key.is_encrypted() {
        return Err(SettingsError::HostKey(russh::keys::ssh_key::Error::Encrypted));
    }
    Ok(key)
}

/// Bad lines are only logged.
fn parse_authorized_keys(contents: &[u8]) -> AuthorizedKeys {
    let keys = AuthorizedKeys::parse(contents);
    for refused in keys.refused() {
        let reason = console::chain(&refused.reason);
        console::log(&format!("authorized_keys line {} is ignored: {reason}", refused.line));
    }
    keys
}

fn server_config(keys: Vec<PrivateKey>) -> russh::server::Config {
    russh::server::Config {
        server_id: russh::SshId::Standard(concat!("SSH-2.0-msb_", env!("CARGO_PKG_VERSION")).into()),
        methods: [russh::MethodKind::PublicKey].as_slice().into(),
        auth_rejection_time: REJECTION_TIME,
        // The probe with method "none" that every client begins with names no key.
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 6,
        keys,
        window_size: WINDOW,
        maximum_packet_size: MAX_PACKET,
        event_buffer_size: 32,
        preferred: algorithms::preferred(),
        inactivity_timeout: None,
        keepalive_interval: None,
        ..Default::default()
    }
}

/// Serves one connection on a socket until it ends.
///
/// # Errors
/// When the stream cannot be polled, its preamble is not served, the client does not log in in time, or the protocol fails.
pub fn serve(stream: OwnedFd, opening: Opening, settings: Settings) -> Result<(), SessionError> {
    run(settings, opening, || FdStream::new(stream))
}

/// Serves one connection on standard input and output, as the user that runs this.
///
/// # Errors
/// As for [`serve`].
pub fn serve_stdio(opening: Opening, settings: Settings) -> Result<(), SessionError> {
    run(settings, opening, || {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        // What a session starts must not hold the connection open.
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        FdStream::from_pair(input, output)
    })
}

fn run(
    settings: Settings,
    opening: Opening,
    stream: impl FnOnce() -> io::Result<FdStream>,
) -> Result<(), SessionError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SessionError::Stream)?;
    let ended = runtime.block_on(async {
        let stream = stream().map_err(SessionError::Stream)?;
        converse(stream, opening, settings).await
    });
    // A name that is being looked up delays nobody.
    runtime.shutdown_background();
    ended
}

/// Serves until the connection ends, or this process is told to.
async fn converse(stream: FdStream, opening: Opening, settings: Settings) -> Result<(), SessionError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(SessionError::Stream)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(SessionError::Stream)?;
    let ended = tokio::select! {
        ended = connection(stream, opening, settings) => ended,
        _ = hangup.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    match ended {
        // A client that just goes away is the usual end.
        Err(SessionError::Ssh(russh::Error::Disconnect | russh::Error::HUP)) => Ok(()),
        Err(SessionError::Ssh(russh::Error::IO(error))) if is_departure(&error) => Ok(()),
        other => other,
    }
}

async fn connection(mut stream: FdStream, opening: Opening, settings: Settings) -> Result<(), SessionError> {
    let settings = match opening {
        Opening::Ssh => settings,
        Opening::Preamble => preamble::receive(&mut stream, settings).await?,
    };
    let logged_in = Arc::new(Notify::new());
    let (config, grace) = (Arc::clone(&settings.config), settings.login_grace);
    let liveness = stream.liveness();
    let (stream, outbound) = Transport::new(stream);
    let handler = Handler::new(settings, liveness, Arc::clone(&outbound), Arc::clone(&logged_in));
    let login = async {
        let session = russh::server::run_stream(config, stream, handler).await?;
        let mut session = Box::pin(session);
        tokio::select! {
            ended = &mut session => ended.map(|()| None),
            () = logged_in.notified() => Ok(Some(session)),
        }
    };
    match tokio::time::timeout(grace, login).await {
        Ok(Ok(Some(session))) => tokio::select! {
            ended = session => ended,
            () = farewell(&outbound) => Ok(()),
        },
        Ok(ended) => ended.map(|_| ()),
        Err(_elapsed) => Err(SessionError::LoginTimeout(grace)),
    }
}

/// Waits until a client that ended the connection has had its time to close the stream: the library waits for that.
async fn farewell(outbound: &Outbound) {
    outbound.shut_down().await;
    tokio::time::sleep(FAREWELL).await;
}

fn is_departure(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}
