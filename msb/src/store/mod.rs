//! The store: sandboxes as directories, with locks instead of a daemon.
//!
//! Every change happens under one lock (`$MSB_HOME/lock`): a sandbox appears and disappears by a rename, so whoever
//! dies on the way leaves a `.new-ID` or `.del-ID` behind, which the next change sweeps away.

pub mod files;
pub mod layout;
pub mod lock;
pub mod names;
mod pools;
mod sweep;

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use files::{FileError, list};
use layout::{Layout, MAX_SOCKET_PATH};
use lock::RunLock;
use msb_ssh::keys::{KeyError, KeyPair};
use msb_ssh::known_hosts::{self, KnownHostsError};
use names::{Name, SandboxId};

use crate::jail::cgroup::CgroupError;
use crate::sandbox::config::Config;

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing has that name or id.
    #[error("there is no sandbox '{0}'; `msb ls` lists those there are")]
    Unknown(String),
    /// More than one id begins so.
    #[error("more than one sandbox id begins with '{0}'; give more digits")]
    Ambiguous(String),
    /// The name is taken.
    #[error("the name '{name}' is taken by sandbox {id}; choose another or remove that one with `msb rm {name}`")]
    NameTaken {
        /// The name.
        name: Name,
        /// Who has it.
        id: SandboxId,
    },
    /// The sandbox runs.
    #[error("sandbox {0} is running; stop it with `msb stop {0}` or use `msb rm --force {0}`")]
    Running(SandboxId),
    /// There is no pool of that name.
    #[error("there is no pool '{0}'; `msb pool ls` lists those there are")]
    UnknownPool(Name),
    /// The name of a pool is taken.
    #[error("there is a pool '{0}' already; choose another name or remove it with `msb pool rm {0}`")]
    PoolExists(Name),
    /// The socket's path does not fit into its address.
    #[error(
        "the socket path {} has {length} bytes, and a Unix socket's at most {MAX_SOCKET_PATH}; \
         set MSB_RUNTIME_DIR to a shorter directory",
        path.display()
    )]
    SocketPathTooLong {
        /// The longest path needed.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The directory for sockets belongs to somebody else.
    #[error("{} is not a directory of yours alone; remove it or set MSB_RUNTIME_DIR to another", .0.display())]
    ForeignRuntimeDir(PathBuf),
    /// The id leads to the same user as another's, whose VM it could then reach.
    #[error("sandbox {0} has the same user; try again")]
    UserTaken(SandboxId),
    /// The cgroup of a run that is over stays.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pinned host keys could not be changed.
    #[error(transparent)]
    KnownHosts(#[from] KnownHostsError),
    /// The host key could not be encoded.
    #[error(transparent)]
    HostKey(#[from] KeyError),
}

/// A directory of sandboxes. Cheap to make and to clone: it holds paths only.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Layout,
}

/// What a new sandbox consists of.
#[derive(Clone, Copy, Debug)]
pub struct NewSandbox<'a> {
    /// What was asked for.
    pub config: &'a Config,
    /// The guest's host key.
    pub host_key: &'a KeyPair,
    /// Keys that may log in.
    pub authorized_keys: &'a [u8],
}

/// Excludes every other change of the store. Ends when dropped.
#[derive(Debug)]
struct StoreLock(#[expect(dead_code, reason = "held, not read")] File);

impl Store {
    /// The store at `layout`. Touches no file.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Finds a sandbox by its name, its id or the beginning of its id; `.msb` at the end is ignored.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn resolve(&self, reference: &str) -> Result<SandboxId, StoreError> {
        let short = reference.strip_suffix(".msb").unwrap_or(reference);
        let unknown = || StoreError::Unknown(reference.into());
        if let Ok(id) = short.parse::<SandboxId>() {
            return if self.exists(&id) { Ok(id) } else { Err(unknown()) };
        }
        if let Some(id) = short.parse().ok().and_then(|name| self.named(&name)) {
            return Ok(id);
        }
        if !names::is_id_prefix(short) {
            return Err(unknown());
        }
        let mut matches = self.ids()?.into_iter().filter(|id| id.as_str().starts_with(short));
        match (matches.next(), matches.next()) {
            (Some(id), None) => Ok(id),
            (None, _) => Err(unknown()),
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(reference.into())),
        }
    }

    /// The ids of all sandboxes, in no order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<SandboxId>, StoreError> {
        let names = list(&self.layout.sandboxes())?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Puts a sandbox into the store: whole, or not at all. With `transient` it is also to be removed as soon as
    /// nobody holds its lock, which is returned.
    ///
    /// # Errors
    /// When its name or its user is taken, its socket's path would be too long, or a file cannot be written.
    pub fn insert(&self, new: NewSandbox<'_>, transient: bool) -> Result<Option<RunLock>, StoreError> {
        let id = &new.config.id;
        self.check_socket_path(id)?;
        let guard = self.lock()?;
        self.sweep_locked(&guard)?;
        if let Some(name) = &new.config.spec.name
            && let Some(id) = self.named(name)
        {
            return Err(StoreError::NameTaken { name: name.clone(), id });
        }
        if let Some(other) = self.ids()?.into_iter().find(|other| other.user() == id.user()) {
            return Err(StoreError::UserTaken(other));
        }
        let built = self.build(new, transient).and_then(|lock| match transient {
            true => Ok(lock),
            false => self.make_durable(id).map(|()| lock),
        });
        if built.is_err() {
            // The failed step is what the caller must hear of; the next change sweeps what this cannot.
            for dir in [self.layout.new_sandbox(id), self.layout.sandbox(id)] {
                let _ = self.purge(&guard, id, dir.path());
            }
        }
        built
    }

    fn build(&self, new: NewSandbox<'_>, transient: bool) -> Result<Option<RunLock>, StoreError> {
        let id = &new.config.id;
        let dir = self.layout.new_sandbox(id);
        files::create_private_dirs(dir.path())?;
        files::write_private(&dir.config(), &files::to_json(new.config))?;
        // Not by `KeyPair::save`, which waits for the disk: most sandboxes are transient.
        files::write_private(&dir.host_key(), new.host_key.to_openssh()?.as_bytes())?;
        files::write_private(
            &dir.host_key_pub(),
            format!("{}\n", new.host_key.public_line()).as_bytes(),
        )?;
        files::write_private(&dir.authorized_keys(), new.authorized_keys)?;
        if new.config.spec.image.is_some() {
            let size = u64::from(new.config.spec.disk_size.mib) << 20;
            files::create_sparse(&dir.writable(), size)?;
        }
        files::write_private(&dir.lock(), b"")?;
        let run_lock = if transient {
            // There is nothing to write, so that it is whole at once.
            files::write_private(&self.layout.transient(id), b"")?;
            RunLock::try_acquire(&dir.lock()).map_err(FileError::io("lock", &dir.lock()))?
        } else {
            None
        };
        let hosts = new.config.hosts();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        known_hosts::add(&self.layout.known_hosts(), &hosts, new.host_key.public_key())?;
        if let Some(name) = &new.config.spec.name {
            self.link_name(name, id)?;
        }
        let place = self.layout.sandbox(id);
        std::fs::rename(dir.path(), place.path()).map_err(FileError::io("create", place.path()))?;
        Ok(run_lock)
    }

    /// Takes the lock that says a sandbox runs; `None` when it runs.
    ///
    /// # Errors
    /// When there is no such sandbox.
    pub fn acquire_run_lock(&self, id: &SandboxId) -> Result<Option<RunLock>, StoreError> {
        let _guard = self.lock()?;
        let path = self.layout.sandbox(id).lock();
        match RunLock::try_acquire(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Unknown(id.to_string())),
            result => Ok(result.map_err(FileError::io("lock", &path))?),
        }
    }

    /// Removes a sandbox that does not run.
    ///
    /// # Errors
    /// When it runs or a file cannot be removed.
    pub fn remove(&self, id: &SandboxId) -> Result<(), StoreError> {
        let guard = self.lock()?;
        if self.is_running(id)? {
            return Err(StoreError::Running(id.clone()));
        }
        self.remove_locked(&guard, id)
    }

    /// Removes a sandbox on behalf of the process that holds its lock.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_held(&self, id: &SandboxId, _held: &RunLock) -> Result<(), StoreError> {
        self.remove_locked(&self.lock()?, id)
    }

    /// Lets a sandbox outlive the process that holds its lock.
    ///
    /// # Errors
    /// When the mark cannot be removed.
    pub fn keep(&self, id: &SandboxId) -> Result<(), StoreError> {
        Ok(files::remove_optional(&self.layout.transient(id))?)
    }

    /// Has the sandbox survive a power cut, which a transient one need not.
    ///
    /// # Errors
    /// When it cannot be written to the disk.
    pub fn make_durable(&self, id: &SandboxId) -> Result<(), StoreError> {
        let dir = self.layout.sandbox(id);
        for file in [dir.config(), dir.host_key(), dir.host_key_pub(), dir.authorized_keys()] {
            files::sync(&file)?;
        }
        if dir.writable().exists() {
            files::sync(&dir.writable())?;
        }
        files::sync(dir.path())?;
        files::sync(&self.layout.sandboxes())?;
        // Its user may have removed it.
        if self.layout.known_hosts().exists() {
            files::sync(&self.layout.known_hosts())?;
        }
        Ok(files::sync(&self.layout.home)?)
    }

    /// Makes the directory of a sandbox's sockets, empty.
    ///
    /// # Errors
    /// When it cannot be made, or somebody else owns the directory it is in.
    pub fn create_socket_dir(&self, id: &SandboxId, _held: &RunLock) -> Result<(), StoreError> {
        self.check_socket_path(id)?;
        self.create_runtime_dir()?;
        self.remove_surroundings(id)?;
        Ok(files::create_private_dirs(&self.layout.sockets(id))?)
    }

    /// Makes the runtime directory, unless it is there.
    ///
    /// # Errors
    /// When it cannot be made, or others may enter it.
    pub(crate) fn create_runtime_dir(&self) -> Result<&Path, StoreError> {
        let runtime = &self.layout.runtime;
        files::create_private_dirs(runtime)?;
        let meta = std::fs::symlink_metadata(runtime).map_err(FileError::io("examine", runtime))?;
        // Anybody can make a directory in /tmp, and this one is found by its name.
        if !meta.is_dir() || meta.uid() != rustix::process::getuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(StoreError::ForeignRuntimeDir(runtime.clone()));
        }
        Ok(runtime)
    }

    /// Whether a process holds the sandbox's lock.
    ///
    /// # Errors
    /// When there is no such sandbox.
    pub fn is_running(&self, id: &SandboxId) -> Result<bool, StoreError> {
        let path = self.layout.sandbox(id).lock();
        match lock::is_held(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Unknown(id.to_string())),
            result => Ok(result.map_err(FileError::io("examine the lock", &path))?),
        }
    }

    fn remove_locked(&self, guard: &StoreLock, id: &SandboxId) -> Result<(), StoreError> {
        let place = self.layout.sandbox(id);
        let removed = self.layout.removed_sandbox(id);
        match std::fs::rename(place.path(), &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Unknown(id.to_string())),
            result => result.map_err(FileError::io("remove", place.path()))?,
        }
        self.purge(guard, id, &removed)
    }

    /// Takes the lock of the store, and makes its directories when they are not there.
    fn lock(&self) -> Result<StoreLock, StoreError> {
        for dir in [self.layout.sandboxes(), self.layout.names(), self.layout.transients()] {
            files::create_private_dirs(&dir)?;
        }
        let path = self.layout.lock();
        let open = || {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        Ok(StoreLock(open().map_err(FileError::io("lock", &path))?))
    }

    /// Gives a sandbox a name that nobody has.
    fn link_name(&self, name: &Name, id: &SandboxId) -> Result<(), StoreError> {
        let link = self.layout.name(name);
        // What is there leads to a sandbox whose damaged configuration no longer told its name.
        files::remove_optional(&link)?;
        let target = format!("../sandboxes/{id}");
        Ok(std::os::unix::fs::symlink(target, &link).map_err(FileError::io("create", &link))?)
    }

    fn exists(&self, id: &SandboxId) -> bool {
        self.layout.sandbox(id).path().is_dir()
    }

    /// Who has the name.
    fn named(&self, name: &Name) -> Option<SandboxId> {
        let target = std::fs::read_link(self.layout.name(name)).ok()?;
        let id = target.file_name()?.to_str()?.parse().ok()?;
        self.exists(&id).then_some(id)
    }

    fn check_socket_path(&self, id: &SandboxId) -> Result<(), StoreError> {
        let path = self.layout.vsock_listener(id, msb_protocol::ports::NOTICES);
        match path.as_os_str().len() {
            length if length > MAX_SOCKET_PATH => Err(StoreError::SocketPathTooLong { path, length }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
