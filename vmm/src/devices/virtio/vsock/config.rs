//! What a vsock device is made with.

use std::path::PathBuf;
use std::time::Duration;

/// What a [`super::Vsock`] is made with.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's context ID: 3 to `u32::MAX - 1`. It means nothing outside this VM.
    pub guest_cid: u32,
    /// The Unix socket for connections into the guest. Connections out of it go to `<uds_path>_<port>`.
    pub uds_path: PathBuf,
    /// The bounds on what guest and clients can make the device hold.
    pub limits: VsockLimits,
}

impl VsockConfig {
    /// A configuration with the default limits.
    pub fn new(guest_cid: u32, uds_path: impl Into<PathBuf>) -> Self {
        Self {
            guest_cid,
            uds_path: uds_path.into(),
            limits: VsockLimits::default(),
        }
    }
}

/// The bounds on what guest and clients can make the device hold.
#[derive(Debug, Clone)]
pub struct VsockLimits {
    /// Connections at once, those that wait for the guest included. At most 65535.
    pub max_connections: u16,
    /// Clients at once that have not finished their `CONNECT` line. Further ones wait in the listener's backlog.
    pub max_handshakes: u16,
    /// How long a client may take for its `CONNECT` line.
    pub handshake_timeout: Duration,
    /// Bytes a guest may send on one connection before its host end takes them.
    ///
    /// The default of 256 KiB is what Linux guests grant in the other direction. The memory is used only while the
    /// host end is slower than the guest.
    pub buffer_size: u32,
    /// How long a connection that is over on the host waits for the guest to agree.
    ///
    /// Linux agrees at once, unless its program has not read everything yet.
    pub close_timeout: Duration,
    /// How long a `CONNECT` waits for the guest to listen.
    pub hold: HoldPolicy,
}

impl Default for VsockLimits {
    fn default() -> Self {
        Self {
            max_connections: 1023,
            max_handshakes: 128,
            handshake_timeout: Duration::from_secs(5),
            buffer_size: 256 * 1024,
            close_timeout: Duration::from_secs(2),
            hold: HoldPolicy::default(),
        }
    }
}

/// How long a `CONNECT` waits for the guest to listen, and how often it asks again.
#[derive(Debug, Clone)]
pub struct HoldPolicy {
    /// The patience until the guest opens its first connection to the host: it boots.
    pub booting: Duration,
    /// The patience afterwards.
    pub ready: Duration,
    /// The pause after the guest's first refusal; it doubles with each further one.
    pub first_retry: Duration,
    /// The longest pause.
    pub max_retry: Duration,
}

impl Default for HoldPolicy {
    fn default() -> Self {
        Self {
            booting: Duration::from_secs(60),
            ready: Duration::from_secs(2),
            first_retry: Duration::from_millis(5),
            max_retry: Duration::from_millis(200),
        }
    }
}
