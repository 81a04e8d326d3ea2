//! Where things are, under `$MSB_HOME` and in the runtime directory. See docs/architecture.md.

use std::env;
use std::path::{Path, PathBuf};

use super::names::{Name, SandboxId};

/// The longest path of a Unix socket: `sun_path` has 108 bytes, one for the terminating zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// The two directories of a store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    /// What lasts: `$MSB_HOME`.
    pub home: PathBuf,
    /// Sockets: `$MSB_RUNTIME_DIR`.
    pub runtime: PathBuf,
}

/// Why there is no place for the state.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The environment names no directory.
    #[error(
        "none of MSB_HOME, XDG_STATE_HOME and HOME is an absolute path; set MSB_HOME to where msb may keep its state"
    )]
    NoHome,
    /// It would be another directory for each current directory.
    #[error("{name} is {}, which is no absolute path; set it to one", path.display())]
    Relative {
        /// The variable.
        name: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The records are JSON, which is UTF-8.
    #[error("the path {} is not UTF-8; set MSB_HOME and MSB_RUNTIME_DIR to paths that are", .0.display())]
    NotUtf8(PathBuf),
}

impl Layout {
    /// From `MSB_HOME` and `MSB_RUNTIME_DIR`, else the XDG base directories, else their defaults.
    ///
    /// # Errors
    /// When the environment names no home at all, or one that cannot be used.
    pub fn from_environment() -> Result<Self, LayoutError> {
        // The XDG specification has relative paths ignored.
        let absolute = |name| variable(name).filter(|path| path.is_absolute());
        let home = own_variable("MSB_HOME")?
            .or_else(|| Some(absolute("XDG_STATE_HOME")?.join("msb")))
            .or_else(|| Some(absolute("HOME")?.join(".local/state/msb")))
            .ok_or(LayoutError::NoHome)?;
        let uid = rustix::process::getuid();
        let runtime = own_variable("MSB_RUNTIME_DIR")?
            .or_else(|| Some(absolute("XDG_RUNTIME_DIR")?.join("msb")))
            .unwrap_or_else(|| match uid.is_root() {
                true => PathBuf::from("/run/msb"),
                false => PathBuf::from(format!("/tmp/msb-{}", uid.as_raw())),
            });
        for path in [&home, &runtime] {
            if path.to_str().is_none() {
                return Err(LayoutError::NotUtf8(path.clone()));
            }
        }
        Ok(Self { home, runtime })
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.home.join("lock")
    }

    pub(super) fn names(&self) -> PathBuf {
        self.home.join("names")
    }

    pub(super) fn name(&self, name: &Name) -> PathBuf {
        self.names().join(name.as_str())
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.home.join("sandboxes")
    }

    pub(super) fn transients(&self) -> PathBuf {
        self.home.join("transient")
    }

    /// While this exists, the sandbox is removed when nobody holds it.
    pub(super) fn transient(&self, id: &SandboxId) -> PathBuf {
        self.transients().join(id.as_str())
    }

    pub(super) fn pools(&self) -> PathBuf {
        self.home.join("pools")
    }

    /// The directory of a pool.
    pub(crate) fn pool(&self, name: &Name) -> PoolDir {
        PoolDir(self.pools().join(name.as_str()))
    }

    /// The private half of the key that msb logs in with.
    pub fn client_key(&self) -> PathBuf {
        self.home.join("client_key")
    }

    /// The public half of the key that msb logs in with.
    pub fn client_key_pub(&self) -> PathBuf {
        self.home.join("client_key.pub")
    }

    /// The user's own keys that every new sandbox accepts.
    pub fn authorized_keys(&self) -> PathBuf {
        self.home.join("authorized_keys")
    }

    /// The pinned host keys.
    pub fn known_hosts(&self) -> PathBuf {
        self.home.join("known_hosts")
    }

    /// The directory of a sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir(self.sandboxes().join(id.as_str()))
    }

    /// A sandbox that is being built. It becomes [`Layout::sandbox`] by a rename.
    pub(super) fn new_sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir(self.sandboxes().join(format!(".new-{id}")))
    }

    /// A sandbox that is being removed.
    pub(super) fn removed_sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(format!(".del-{id}"))
    }

    /// The directory of a sandbox's sockets.
    pub fn sockets(&self, id: &SandboxId) -> PathBuf {
        self.runtime.join(id.as_str())
    }

    /// A link to the cgroup of the sandbox's VM.
    pub fn cgroup(&self, id: &SandboxId) -> PathBuf {
        self.sockets(id).join("cgroup")
    }

    /// The socket that leads to the sandbox's vsock ports.
    pub fn vsock(&self, id: &SandboxId) -> PathBuf {
        self.sockets(id).join("v.sock")
    }

    /// Where the running sandbox is controlled.
    pub fn control(&self, id: &SandboxId) -> PathBuf {
        self.sockets(id).join("c.sock")
    }

    /// Where the process listens that stands by while the sandbox waits in a pool.
    pub fn standby(&self, id: &SandboxId) -> PathBuf {
        self.sockets(id).join("s.sock")
    }

    /// Where the VMM takes connections of the guest to `port` of its host.
    pub fn vsock_listener(&self, id: &SandboxId, port: u32) -> PathBuf {
        self.sockets(id).join(format!("v.sock_{port}"))
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A variable of msb itself: a wrong one is not passed over.
fn own_variable(name: &'static str) -> Result<Option<PathBuf>, LayoutError> {
    match variable(name) {
        Some(path) if path.is_relative() => Err(LayoutError::Relative { name, path }),
        path => Ok(path),
    }
}

/// The directory of a pool of forks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolDir(PathBuf);

impl PoolDir {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What was asked for.
    pub fn record(&self) -> PathBuf {
        self.0.join("pool.json")
    }

    /// The snapshot that its forks go on from.
    pub fn saved(&self) -> PathBuf {
        self.0.join("saved")
    }

    /// Locked by who fills it.
    pub fn filling(&self) -> PathBuf {
        self.0.join("filling")
    }

    /// What whoever fills it in the background has to say.
    pub fn log(&self) -> PathBuf {
        self.0.join("fill.log")
    }
}

/// The directory of one sandbox.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SandboxDir(PathBuf);

impl SandboxDir {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What was asked for.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// Private host key of the guest.
    pub fn host_key(&self) -> PathBuf {
        self.0.join("host_key")
    }

    /// Public host key of the guest.
    pub fn host_key_pub(&self) -> PathBuf {
        self.0.join("host_key.pub")
    }

    /// The keys that may log in.
    pub fn authorized_keys(&self) -> PathBuf {
        self.0.join("authorized_keys")
    }

    /// Which run is, or was, the latest.
    pub fn run(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// When the latest run served SSH.
    pub fn ready(&self) -> PathBuf {
        self.0.join("ready.json")
    }

    /// That the latest run is paused.
    pub fn paused(&self) -> PathBuf {
        self.0.join("paused.json")
    }

    /// That the latest run waits in a pool.
    pub fn waiting(&self) -> PathBuf {
        self.0.join("waiting.json")
    }

    /// When the latest run will be ended.
    pub fn deadline(&self) -> PathBuf {
        self.0.join("deadline.json")
    }

    /// How the latest run ended.
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// The guest's console.
    pub fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// The older half of the guest's console, once it is long.
    pub fn older_console_log(&self) -> PathBuf {
        self.0.join("console.log.1")
    }

    /// What the VMM process itself has to say.
    pub fn vmm_log(&self) -> PathBuf {
        self.0.join("vmm.log")
    }

    /// What a sandbox of an image has written, as a disk: a file that is mostly holes.
    pub fn writable(&self) -> PathBuf {
        self.0.join("writable.img")
    }

    /// The lock of the VMM process.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
}
