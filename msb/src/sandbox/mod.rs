//! A sandbox, from its creation to its removal.

pub(crate) mod clone;
pub mod config;
pub mod control;
mod create;
pub mod deadline;
pub mod files;
pub mod process;
pub mod processes;
pub mod records;
pub mod saved;
pub mod spec;
pub mod ssh;
pub mod start;
pub mod start_command;
pub mod state;
pub mod stop;
pub mod usage;
pub mod volume;
mod watch;

pub use create::CreateError;

use config::Config;
use serde::de::Error as _;
use state::State;

use crate::store::files::{FileError, read_json};
use crate::store::layout::SandboxDir;
use crate::store::names::SandboxId;
use crate::store::{Store, StoreError};

/// One sandbox of a store. Holds no resource: the sandbox lives on when this is dropped.
#[derive(Clone, Debug)]
pub struct Sandbox {
    store: Store,
    config: Config,
}

impl Sandbox {
    /// Finds a sandbox by name, id, or the beginning of its id.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(store: &Store, reference: &str) -> Result<Self, StoreError> {
        Self::open(store, &store.resolve(reference)?)
    }

    /// Opens the sandbox with this id.
    ///
    /// # Errors
    /// When there is none or its configuration cannot be read.
    pub fn open(store: &Store, id: &SandboxId) -> Result<Self, StoreError> {
        let path = store.layout().sandbox(id).config();
        let config: Option<Config> = read_json(&path)?;
        let config = config.ok_or_else(|| StoreError::Unknown(id.to_string()))?;
        if config.id != *id {
            let source = serde_json::Error::custom(format_args!("it is that of sandbox {}", config.id));
            let key = "id".into();
            return Err(FileError::Malformed { path, key, source }.into());
        }
        Ok(Self {
            store: store.clone(),
            config,
        })
    }

    /// All sandboxes, oldest first, those that cannot be opened in front. One that is removed meanwhile is left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all(store: &Store) -> Result<Vec<Result<Self, StoreError>>, StoreError> {
        let opened = store.ids()?.into_iter().map(|id| Self::open(store, &id));
        let mut all: Vec<_> = opened
            .filter(|opened| !matches!(opened, Err(StoreError::Unknown(_))))
            .collect();
        all.sort_by_cached_key(|opened| {
            let config = opened.as_ref().ok().map(Self::config);
            config.map(|config| (config.created_at, config.id.clone()))
        });
        Ok(all)
    }

    /// Its id.
    pub fn id(&self) -> &SandboxId {
        &self.config.id
    }

    /// Its name, else its id.
    pub fn label(&self) -> &str {
        self.config.label()
    }

    /// What was asked for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The store it is in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its files.
    pub fn dir(&self) -> SandboxDir {
        self.store.layout().sandbox(self.id())
    }

    /// What it is doing.
    ///
    /// # Errors
    /// When it was removed or a record cannot be read.
    pub fn state(&self) -> Result<State, StoreError> {
        state::read(&self.store, self.id())
    }

    /// Blocks until no VMM process runs it, and says how it ended.
    ///
    /// # Errors
    /// When it was removed or a record cannot be read.
    pub fn wait(&self) -> Result<State, StoreError> {
        let lock = self.dir().lock();
        match crate::store::lock::wait_released(&lock) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(StoreError::Unknown(self.label().to_owned()))
            }
            result => {
                result.map_err(FileError::io("wait for the lock", &lock))?;
                self.state()
            }
        }
    }

    /// Removes it with all it holds.
    ///
    /// # Errors
    /// When it runs or a file cannot be removed.
    pub fn remove(&self) -> Result<(), StoreError> {
        self.store.remove(self.id())
    }
}
