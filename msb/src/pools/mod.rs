//! Pools of forks that wait, restored and warm, until somebody takes one.
//!
//! A pool is a directory with a snapshot and the number of forks that shall wait. What waits is a sandbox like any other,
//! paused, in a state of its own; its VMM process alone decides who gets it. The process that made it [stands by](standby)
//! with a connection that is logged in. Whoever takes one starts a process that fills the pool again. There is nothing
//! else: a pool whose fillers died is filled by the next who takes, and until then a taker that finds nobody restores the
//! snapshot itself.

pub(crate) mod standby;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::assets::{self, AssetsError};
use crate::sandbox::Sandbox;
use crate::sandbox::control::ControlError;
use crate::sandbox::deadline::TimeLimit;
use crate::sandbox::saved::{SaveError, SavedSandbox};
use crate::sandbox::ssh::{Program, SshClientOptions, SshError, Stdio};
use crate::sandbox::start::{StartError, StartedSandbox};
use crate::sandbox::stop::StopError;
use crate::store::files::{self, FileError};
use crate::store::layout::PoolDir;
use crate::store::names::{Name, SandboxId};
use crate::store::{Store, StoreError};
use crate::vmm_process::args::Lifetime;
use crate::vmm_process::control::Take;
use crate::vmm_process::spawn::{self, SpawnError, Streams};
use standby::Standby;

/// The most forks that a pool can have wait.
pub const MAX_SIZE: u16 = 1000;

/// How long a fork may take until it serves SSH.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the session that warms a fork may take.
const WARM_TIMEOUT: Duration = Duration::from_secs(30);

/// What a process says whose fork waits.
pub(crate) const WAITS: &str = "it waits";

/// The longest reason that a process gives, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// How long whoever takes a fork has the host's CPUs to itself before its replacement is made.
pub(crate) const HEAD_START: Duration = Duration::from_secs(1);

/// Why a pool cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The sandbox cannot be saved, or none restored.
    #[error(transparent)]
    Save(Box<SaveError>),
    /// A fork does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A fork cannot be made to wait.
    #[error("a fork that is ready cannot wait")]
    Wait(#[source] ControlError),
    /// A fork does not end.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// There is no msb to fill it with.
    #[error(transparent)]
    Program(#[from] AssetsError),
    /// There is no process to fill it.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// What the process says that was to make a fork.
    #[error("{0}")]
    Fork(String),
    /// The process that was to make a fork says nothing.
    #[error("the process that makes a fork ended without a word; see {}", .0.display())]
    Vanished(PathBuf),
    /// The process that was to make a fork cannot be heard.
    #[error("cannot hear the process that makes a fork")]
    Unheard(#[source] io::Error),
    /// The kernel gives no random bytes.
    #[error("cannot get random bytes for an id")]
    Random(#[source] io::Error),
    /// No pool is so large.
    #[error("a pool has 1 to {MAX_SIZE} forks wait, not {0}")]
    Size(u16),
}

impl From<SaveError> for PoolError {
    fn from(error: SaveError) -> Self {
        Self::Save(Box::new(error))
    }
}

/// One pool among those that had its name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRef {
    /// What it is called.
    pub name: Name,
    /// Random hex digits.
    pub id: String,
}

/// The content of `pool.json`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRecord {
    /// Random hex digits.
    pub id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many forks shall wait.
    pub size: u16,
}

/// What the forks of a pool go on from.
#[derive(Clone, Copy, Debug)]
pub enum PoolSource<'a> {
    /// A sandbox that runs, as it is now.
    Sandbox(&'a Sandbox),
    /// A snapshot; the pool has a copy of its own.
    Snapshot(&'a Path),
}

/// A pool of forks. Holds no resource.
#[derive(Clone, Debug)]
pub struct Pool {
    store: Store,
    name: Name,
    record: PoolRecord,
}

impl Pool {
    /// Makes a pool in which `size` forks shall wait: [`Pool::fill`] has them made. Blocks.
    ///
    /// # Errors
    /// When its name is taken, or the source cannot be saved or read; nothing is left then.
    pub fn create(store: &Store, name: Name, size: u16, source: PoolSource<'_>) -> Result<Self, PoolError> {
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(PoolError::Size(size));
        }
        let id = SandboxId::random().map_err(PoolError::Random)?.to_string();
        let record = PoolRecord {
            id,
            created_at: Timestamp::now(),
            size,
        };
        let new = store.begin_pool(&record.id)?;
        let make = || {
            match source {
                PoolSource::Sandbox(sandbox) => sandbox.snapshot(&new.dir.saved())?,
                PoolSource::Snapshot(directory) => SavedSandbox::open(directory)?.copy_to(&new.dir.saved())?,
            }
            files::write_private(&new.dir.filling(), b"")?;
            files::write_private(&new.dir.record(), &files::to_json(&record))?;
            Ok(store.insert_pool(&new, &name)?)
        };
        if let Err(error) = make() {
            // The failed step is what the caller must hear of.
            let _ = files::remove_dir_optional(new.dir.path());
            return Err(error);
        }
        Ok(Self {
            store: store.clone(),
            name,
            record,
        })
    }

    /// Finds the pool of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(store: &Store, name: &Name) -> Result<Self, StoreError> {
        let record = files::read_json(&store.layout().pool(name).record())?;
        Ok(Self {
            store: store.clone(),
            name: name.clone(),
            record: record.ok_or_else(|| StoreError::UnknownPool(name.clone()))?,
        })
    }

    /// All pools, by name. One that is removed meanwhile is left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all(store: &Store) -> Result<Vec<Self>, StoreError> {
        let pools = store.pools()?.into_iter().map(|name| Self::find(store, &name));
        pools
            .filter(|pool| !matches!(pool, Err(StoreError::UnknownPool(_))))
            .collect()
    }

    /// What it is called.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What was asked for.
    pub fn record(&self) -> &PoolRecord {
        &self.record
    }

    /// What its forks go on from.
    ///
    /// # Errors
    /// When a file of it is gone.
    pub fn saved(&self) -> Result<SavedSandbox, SaveError> {
        SavedSandbox::open(&self.dir().saved())
    }

    /// The forks that wait.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn waiting(&self) -> Result<Vec<Sandbox>, StoreError> {
        self.store.waiting_in(&self.record.id)
    }

    /// Takes a fork that waits, or makes one if none does: a sandbox called `name` with an identity of its own, which runs
    /// for `limit`, else as long as the saved one might. A process in the background makes its replacement. Needs a tokio
    /// runtime with I/O.
    ///
    /// # Errors
    /// When its name is taken, or no fork waits and none can be made.
    pub fn take(
        &self,
        name: Option<&Name>,
        lifetime: Lifetime,
        limit: Option<TimeLimit>,
    ) -> Result<StartedSandbox, PoolError> {
        let taken = self.take_unreplaced(name, lifetime, limit)?;
        Ok(taken.started)
    }

    /// Like [`Pool::take`], with what comes with it.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn take_unreplaced(
        &self,
        name: Option<&Name>,
        lifetime: Lifetime,
        limit: Option<TimeLimit>,
    ) -> Result<Taken, PoolError> {
        let saved = self.saved()?;
        let limit = limit.unwrap_or_else(|| saved.spec().time_limit());
        let take = Take {
            name: name.cloned(),
            lifetime,
            limit,
        };
        let (started, standby) = match self.take_waiting(&take)? {
            Some(taken) => taken,
            None => (saved.restore_limited(&self.store, name, lifetime, limit)?, None),
        };
        Ok(Taken {
            started,
            standby,
            replacement: Replacement(self.clone()),
        })
    }

    fn take_waiting(&self, take: &Take) -> Result<Option<(StartedSandbox, Option<Standby>)>, PoolError> {
        let mut waiting = self.waiting()?;
        if !waiting.is_empty() {
            // Those who take at the same time begin at different ones.
            let first = usize::try_from(std::process::id()).unwrap_or_default() % waiting.len();
            waiting.rotate_left(first);
        }
        for fork in waiting {
            let (ours, theirs) = UnixStream::pair().map_err(StartError::Read)?;
            match fork.take(take.clone(), &theirs) {
                Ok(()) => {
                    drop(theirs);
                    let standby = Standby::connect(&self.store.layout().standby(fork.id()));
                    let sandbox = Sandbox::open(&self.store, fork.id())?;
                    return Ok(Some((StartedSandbox::heard_on(sandbox, ours)?, standby)));
                }
                // Somebody else has it, or it has died: the next one. A name that is taken is so for all.
                Err(error) => tracing::info!(error = &error as &dyn std::error::Error, "a fork cannot be taken"),
            }
        }
        Ok(None)
    }

    /// Makes forks until as many wait as shall, after others who are at it.
    ///
    /// # Errors
    /// When one cannot be made; those that were made wait.
    pub async fn fill(&self) -> Result<(), PoolError> {
        let path = self.dir().filling();
        let lock = tokio::task::spawn_blocking(move || {
            let file = File::open(&path)?;
            file.lock().map(|()| file)
        });
        let lock = lock.await.map_err(io::Error::other).flatten();
        let lock = lock.map_err(FileError::io("lock", &self.dir().filling()))?;
        self.fill_held(&lock).await
    }

    /// What a process in the background does: leaves the host to the taker for a moment, then makes forks unless somebody
    /// else is at it.
    ///
    /// # Errors
    /// As [`Pool::fill`].
    pub(crate) async fn refill(&self) -> Result<(), PoolError> {
        tokio::time::sleep(HEAD_START).await;
        let failed = |source| FileError::io("lock", &self.dir().filling())(source);
        // Who takes one while somebody is at it leaves it to them: they look again when nobody is.
        while self.lacks()? > 0 {
            let file = File::open(self.dir().filling()).map_err(failed)?;
            match file.try_lock() {
                Err(std::fs::TryLockError::WouldBlock) => return Ok(()),
                Err(std::fs::TryLockError::Error(error)) => return Err(failed(error).into()),
                Ok(()) => self.fill_held(&file).await?,
            }
        }
        Ok(())
    }

    fn fill_in_background(&self) -> Result<(), PoolError> {
        let log = self.log()?;
        // What came of earlier takes is no news.
        log.set_len(0).map_err(FileError::io("empty", &self.dir().log()))?;
        let streams = Streams {
            input: process::Stdio::null(),
            output: process::Stdio::null(),
            errors: log.into(),
        };
        self.spawn(&["fill", "--background"], streams)
    }

    /// Starts `msb pool` in the background, with the name of this one as its last argument.
    fn spawn(&self, verb: &[&str], streams: Streams) -> Result<(), PoolError> {
        let arguments = [&["pool"], verb, &[self.name.as_str()]].concat();
        let program = assets::msb_program()?;
        Ok(spawn::spawn_detached(
            &program,
            &arguments,
            self.store.layout(),
            streams,
        )?)
    }

    fn log(&self) -> Result<File, FileError> {
        files::append_log(&self.dir().log())
    }

    async fn fill_held(&self, lock: &File) -> Result<(), PoolError> {
        while self.lacks()? > 0 {
            self.add_with_standby(lock).await?;
        }
        Ok(())
    }

    fn lacks(&self) -> Result<usize, StoreError> {
        Ok(usize::from(self.record.size).saturating_sub(self.waiting()?.len()))
    }

    /// Has a process make one fork and stand by it; returns when that waits. The process holds the lock as long, though
    /// this one dies.
    async fn add_with_standby(&self, lock: &File) -> Result<(), PoolError> {
        let (answer, output) = io::pipe().map_err(PoolError::Unheard)?;
        let held = lock.try_clone().map_err(FileError::io("hold", &self.dir().filling()))?;
        let streams = Streams {
            input: held.into(),
            output: output.into(),
            errors: self.log()?.into(),
        };
        self.spawn(&["stand-by"], streams)?;
        let read = move || {
            let mut said = String::new();
            answer.take(MAX_ANSWER).read_to_string(&mut said).map(|_| said)
        };
        let said = tokio::task::spawn_blocking(read).await.map_err(io::Error::other);
        let said = said.flatten().map_err(PoolError::Unheard)?;
        match said.as_str() {
            WAITS => Ok(()),
            "" => Err(PoolError::Vanished(self.dir().log())),
            _ => Err(PoolError::Fork(said)),
        }
    }

    /// What that process does first: makes one fork, logs in to it and lets it wait. Until it waits, it is this process's,
    /// and goes with it. Returns what stands by it, if that can be.
    ///
    /// # Errors
    /// When it cannot be made, or there is no such pool any more.
    pub(crate) async fn add(&self) -> Result<Option<standby::Server>, PoolError> {
        let saved = self.saved()?;
        let mut started = saved.restore_limited(&self.store, None, Lifetime::OfStarter, TimeLimit::default())?;
        let added = self.warm(&mut started).await;
        if added.is_err() {
            // The failed step is what the caller must hear of.
            let _ = started.discard().await;
        }
        added
    }

    async fn warm(&self, started: &mut StartedSandbox) -> Result<Option<standby::Server>, PoolError> {
        started.ready(READY_TIMEOUT).await?;
        let sandbox = started.sandbox().clone();
        // Only what was touched is there at once: a session touches what the next one will. A guest that serves none is
        // the taker's to find out about.
        let logged_in = tokio::time::timeout(WARM_TIMEOUT, log_in(&sandbox)).await;
        let pool = PoolRef {
            name: self.name.clone(),
            id: self.record.id.clone(),
        };
        let waits = tokio::task::spawn_blocking(move || sandbox.wait_in_pool(pool)).await;
        let waits = waits.map_err(io::Error::other).map_err(ControlError::Connection);
        waits.flatten().map_err(PoolError::Wait)?;
        Ok(logged_in.ok().and_then(Result::ok))
    }

    /// Removes it with the forks that wait. Those that were taken stay. Blocks.
    ///
    /// # Errors
    /// When it is gone, or one of its forks does not end.
    pub fn remove(self) -> Result<(), PoolError> {
        let pool = PoolRef {
            name: self.name.clone(),
            id: self.record.id.clone(),
        };
        self.store.remove_pool(&pool)?;
        for fork in self.waiting()? {
            fork.remove_by_force()?;
        }
        Ok(self.store.purge_pool(&pool.id)?)
    }

    fn dir(&self) -> PoolDir {
        self.store.layout().pool(&self.name)
    }
}

/// A fork that was taken, or one made for the taker.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) started: StartedSandbox,
    /// Who can run a session in it, as its default user.
    pub(crate) standby: Option<Standby>,
    /// Has its replacement made.
    pub(crate) replacement: Replacement,
}

/// A fork that is to be made in the place of one that was taken. Dropping it starts the process that does.
#[derive(Debug)]
pub(crate) struct Replacement(Pool);

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Err(error) = self.0.fill_in_background() {
            // What was taken works all the same.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot fill the pool");
        }
    }
}

/// Logs in as the user that is the default, runs a command that does nothing, and opens a session for a taker.
async fn log_in(sandbox: &Sandbox) -> Result<standby::Server, SshError> {
    let options = SshClientOptions {
        user: sandbox.config().spec.default_user().to_owned(),
        sftp: false,
        ..SshClientOptions::default()
    };
    let client = sandbox.ssh().open_client(options).await?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(SshError::Stream)?;
    let stdio = Stdio::new(null.as_fd(), null.as_fd(), null.as_fd()).map_err(SshError::Stream)?;
    let nothing = Program::Exec(b"exit".to_vec());
    client.copy_stdio(&nothing, false, &[], &stdio).await?;
    let session = client.prepare().await?;
    let machine = sandbox.running(Duration::ZERO)?.vm.map(|vm| vm.pid);
    let listener = standby::listen(&sandbox.store().layout().standby(sandbox.id())).map_err(SshError::Stream)?;
    Ok(standby::Server {
        listener,
        client,
        session,
        machine,
    })
}
