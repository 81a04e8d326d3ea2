//! Sandboxes that were saved, and those that go on from there.
//!
//! A snapshot is a directory that the user names:
//!
//! ```text
//! sandbox.json   what the sandbox was asked to be, and the keys that may log in
//! state          vCPUs, interrupt controllers, clock, devices, with a checksum (vmm/src/snapshot.rs)
//! memory         the guest's memory, with holes where it has none
//! disk0, ...     copies of the disks it can write to, by their place
//! writable.img   what it wrote on top of its image, if it has one
//! ```
//!
//! It appears whole, by a rename. A fork is the same with files that have no name, which are gone when nobody uses them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::clone::clone;
use super::control::ControlError;
use super::deadline::TimeLimit;
use super::spec::{Disk, SandboxSpec};
use super::start::{StartError, StartedSandbox};
use super::{CreateError, Sandbox};
use crate::store::files::{self, FileError};
use crate::store::names::{Name, SandboxId};
use crate::store::{Store, StoreError};
use crate::vmm_process::args::Lifetime;
use crate::vmm_process::spawn::Saved;

/// The version of `sandbox.json`.
const FORMAT: u32 = 1;
const DESCRIPTION: &str = "sandbox.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const WRITABLE: &str = "writable.img";

/// Why a sandbox cannot be saved, or none made from what was.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It does not run, or its VMM process cannot do it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sandbox cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The sandbox cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What its guest has open of them no copy of it would have.
    #[error("it has volumes, and what its guest has open there cannot be saved; make it without --volume")]
    Volumes,
    /// Something is there already.
    #[error("{} exists already; remove it or choose another directory", .0.display())]
    Exists(PathBuf),
    /// Another process is at it.
    #[error("another msb is just saving to {}", .0.display())]
    Busy(PathBuf),
    /// A directory has not all of a snapshot.
    #[error("{} is no snapshot: it has no {missing}", path.display())]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// What it lacks.
        missing: String,
    },
    /// Another version of msb made it.
    #[error("{} has the format version {found}, and this msb reads version {FORMAT}; make it again", path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// The content of `sandbox.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format: u32,
    spec: SandboxSpec,
    authorized_keys: String,
}

/// The files of a description, before the rest is understood.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// A sandbox as it was at one moment, from which any number of others can go on.
#[derive(Debug)]
pub struct SavedSandbox {
    spec: SandboxSpec,
    authorized_keys: Vec<u8>,
    state: File,
    memory: File,
    /// For each disk of `spec`, the copy if the guest can write to it.
    disks: Vec<Option<File>>,
    /// What the guest wrote on top of its image, if it has one.
    writable: Option<File>,
}

impl Sandbox {
    /// Saves it to `directory`, which must not exist, and lets it go on. It stands still meanwhile. Blocks.
    ///
    /// # Errors
    /// When it does not run or something cannot be written; the sandbox goes on, and nothing is left.
    pub fn snapshot(&self, directory: &Path) -> Result<(), SaveError> {
        let place = Place::new(directory)?;
        let saved = self.save_to(&mut |name| place.create(name));
        place.finish_or_remove(saved.and_then(|saved| saved.describe(&place)))
    }

    /// Saves it without a trace, to go on from at once, and lets it go on. It stands still meanwhile. Blocks.
    ///
    /// # Errors
    /// As [`Sandbox::snapshot`].
    pub fn save(&self) -> Result<SavedSandbox, SaveError> {
        let home = self.store().layout().home.clone();
        self.save_to(&mut |name| nameless(&home, name))
    }

    /// Saves it and starts a fork for each of `names`, without waiting until they are ready. Needs a tokio runtime with
    /// I/O, and blocks while it is saved.
    ///
    /// # Errors
    /// When it cannot be saved. What goes wrong with one fork is in its place, and keeps no other from starting.
    pub fn fork(
        &self,
        names: impl IntoIterator<Item = Option<Name>>,
        lifetime: Lifetime,
    ) -> Result<Vec<Result<StartedSandbox, SaveError>>, SaveError> {
        let saved = self.save()?;
        let forks = names.into_iter();
        Ok(forks
            .map(|name| saved.restore(self.store(), name.as_ref(), lifetime))
            .collect())
    }

    /// Makes a sandbox called `name` that goes on from the snapshot in `directory`: [`SavedSandbox::restore`].
    ///
    /// # Errors
    /// When there is no snapshot, and as there.
    pub fn restore(
        store: &Store,
        directory: &Path,
        name: Option<&Name>,
        lifetime: Lifetime,
    ) -> Result<StartedSandbox, SaveError> {
        SavedSandbox::open(directory)?.restore(store, name, lifetime)
    }

    fn save_to(&self, create: &mut dyn FnMut(&str) -> Result<File, FileError>) -> Result<SavedSandbox, SaveError> {
        if !self.config().spec.volumes.is_empty() {
            return Err(SaveError::Volumes);
        }
        let control = self.control()?;
        let spec = self.config().spec.clone();
        let keys = self.dir().authorized_keys();
        let authorized_keys = files::read_optional(&keys)?.unwrap_or_default();
        let (state, memory) = (create(STATE)?, create(MEMORY)?);
        reserve_in_memory(&memory, u64::from(spec.memory.mib) << 20)
            .map_err(FileError::io("make room in", Path::new(MEMORY)))?;
        control.save(&state, &memory)?;
        // The guest stands still as long as `control` lives: the disks are those of its memory.
        let disks = spec.disks.iter().enumerate().map(|(index, disk)| {
            if disk.read_only {
                return Ok(None);
            }
            let copy = create(&disk_name(index))?;
            let source = File::open(&disk.path).map_err(FileError::io("open", &disk.path))?;
            clone(&source, &copy).map_err(FileError::io("copy the disk", &disk.path))?;
            Ok(Some(copy))
        });
        let disks = disks.collect::<Result<_, FileError>>()?;
        let writable = match spec.image {
            None => None,
            Some(_) => {
                let (path, copy) = (self.dir().writable(), create(WRITABLE)?);
                let source = File::open(&path).map_err(FileError::io("open", &path))?;
                clone(&source, &copy).map_err(FileError::io("copy the disk", &path))?;
                Some(copy)
            }
        };
        drop(control);
        Ok(SavedSandbox {
            spec,
            authorized_keys,
            state,
            memory,
            disks,
            writable,
        })
    }
}

impl SavedSandbox {
    /// Opens the snapshot in `directory`.
    ///
    /// # Errors
    /// When it lacks a file, or is none of this version. What the files hold is checked when a sandbox goes on from it.
    pub fn open(directory: &Path) -> Result<Self, SaveError> {
        let open = |name: &str| match File::open(directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SaveError::Incomplete {
                path: directory.into(),
                missing: name.into(),
            }),
            opened => Ok(opened.map_err(FileError::io("open", &directory.join(name)))?),
        };
        drop(open(DESCRIPTION)?);
        let path = directory.join(DESCRIPTION);
        let FormatOnly { format } = files::read_json(&path)?.unwrap_or(FormatOnly { format: 0 });
        if format != FORMAT {
            return Err(SaveError::Format {
                path: directory.into(),
                found: format,
            });
        }
        let description: Option<Description> = files::read_json(&path)?;
        let Description {
            spec, authorized_keys, ..
        } = description.ok_or(SaveError::Incomplete {
            path: directory.into(),
            missing: DESCRIPTION.into(),
        })?;
        let disks = spec
            .disks
            .iter()
            .enumerate()
            .map(|(index, disk)| (!disk.read_only).then(|| open(&disk_name(index))).transpose());
        Ok(Self {
            disks: disks.collect::<Result<_, _>>()?,
            writable: spec.image.as_ref().map(|_| open(WRITABLE)).transpose()?,
            state: open(STATE)?,
            memory: open(MEMORY)?,
            authorized_keys: authorized_keys.into_bytes(),
            spec,
        })
    }

    /// What the sandbox was asked to be.
    pub fn spec(&self) -> &SandboxSpec {
        &self.spec
    }

    /// What the sandbox was called.
    pub fn name(&self) -> Option<&Name> {
        self.spec.name.as_ref()
    }

    /// Puts a snapshot that makes the same sandboxes into `directory`, which must not exist.
    ///
    /// # Errors
    /// When a file cannot be copied; nothing is left.
    pub(crate) fn copy_to(&self, directory: &Path) -> Result<(), SaveError> {
        let place = Place::new(directory)?;
        let copy = |name: &str, from: &File| {
            let path = place.partial.join(name);
            clone(from, &create_private(&path)?).map_err(FileError::io("write", &path))
        };
        let disks = (0..).map(disk_name).zip(&self.disks);
        let disks = disks.filter_map(|(name, disk)| disk.as_ref().map(|disk| (name, disk)));
        let writable = self.writable.as_ref().map(|writable| (WRITABLE.to_owned(), writable));
        let result = disks
            .chain(writable)
            .chain([(STATE.to_owned(), &self.state), (MEMORY.to_owned(), &self.memory)])
            .try_for_each(|(name, file)| copy(&name, file))
            .map_err(SaveError::from)
            .and_then(|()| self.describe(&place));
        place.finish_or_remove(result)
    }

    /// Writes down what it is, and makes the snapshot whole.
    fn describe(&self, place: &Place) -> Result<(), SaveError> {
        let description = Description {
            format: FORMAT,
            spec: self.spec.clone(),
            authorized_keys: String::from_utf8_lossy(&self.authorized_keys).into_owned(),
        };
        files::write_private(&place.partial.join(DESCRIPTION), &files::to_json(&description))?;
        place.finish()
    }

    /// Makes a sandbox called `name` that goes on where this was saved, with a host key, an id and disks of its own. It
    /// serves SSH once it knows who it is: [`StartedSandbox::ready`]. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When its name is taken, its disks cannot be copied, or no VMM process can be started; nothing is left behind.
    pub fn restore(&self, store: &Store, name: Option<&Name>, lifetime: Lifetime) -> Result<StartedSandbox, SaveError> {
        self.restore_limited(store, name, lifetime, self.spec.time_limit())
    }

    /// Like [`SavedSandbox::restore`], with another time for the run than the saved sandbox had.
    ///
    /// # Errors
    /// As there.
    pub fn restore_limited(
        &self,
        store: &Store,
        name: Option<&Name>,
        lifetime: Lifetime,
        limit: TimeLimit,
    ) -> Result<StartedSandbox, SaveError> {
        let spec = |id: &SandboxId| {
            let dir = store.layout().sandbox(id);
            let own = |(index, disk): (usize, &Disk)| match disk.read_only {
                true => disk.clone(),
                false => Disk {
                    path: dir.path().join(disk_name(index)),
                    read_only: false,
                },
            };
            SandboxSpec {
                name: name.cloned(),
                timeout: limit.timeout,
                on_timeout: limit.end,
                disks: self.spec.disks.iter().enumerate().map(own).collect(),
                ..self.spec.clone()
            }
        };
        let (sandbox, lock) = Sandbox::insert_with(store, &self.authorized_keys, true, spec)?;
        let lock = lock.expect("a transient sandbox is new, so nobody else can hold its lock");
        let started = self.copy_disks(&sandbox).map_err(SaveError::from).and_then(|()| {
            let saved = Saved {
                state: &self.state,
                memory: &self.memory,
            };
            Ok(sandbox.start_from(lock, lifetime, limit, Some(saved))?)
        });
        if started.is_err() {
            // Its lock is free by now; what this cannot remove, the next sweep does.
            let _ = sandbox.remove();
        }
        started
    }

    fn copy_disks(&self, sandbox: &Sandbox) -> Result<(), FileError> {
        for (disk, saved) in sandbox.config().spec.disks.iter().zip(&self.disks) {
            if let Some(saved) = saved {
                let own = create_private(&disk.path)?;
                clone(saved, &own).map_err(FileError::io("write the disk", &disk.path))?;
            }
        }
        if let Some(saved) = &self.writable {
            // The store made it, empty.
            let path = sandbox.dir().writable();
            let own = File::options().write(true).truncate(true).open(&path);
            own.and_then(|own| clone(saved, &own))
                .map_err(FileError::io("write the disk", &path))?;
        }
        Ok(())
    }
}

/// Where files are memory themselves, takes that of `file` here and now: what the VM's process took to write it would
/// count towards its own limit.
fn reserve_in_memory(file: &File, size: u64) -> io::Result<()> {
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    if rustix::fs::fstatfs(file)?.f_type == TMPFS_MAGIC {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size)?;
    }
    Ok(())
}

fn disk_name(index: usize) -> String {
    format!("disk{index}")
}

/// Where a snapshot is made before it is whole.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    partial: PathBuf,
    /// Held while this process is at it.
    _lock: File,
}

impl Place {
    fn new(directory: &Path) -> Result<Self, SaveError> {
        if fs::symlink_metadata(directory).is_ok() {
            return Err(SaveError::Exists(directory.into()));
        }
        let mut partial = directory.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if let Ok(left) = File::open(&partial)
            && !sweep(&left, &partial)?
        {
            return Err(SaveError::Busy(directory.into()));
        }
        let make = || {
            DirBuilder::new().mode(0o700).create(&partial)?;
            let lock = File::open(&partial)?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            Ok(lock)
        };
        let lock = make().map_err(FileError::io("create the directory", &partial))?;
        Ok(Self {
            directory: directory.into(),
            partial,
            _lock: lock,
        })
    }

    fn create(&self, name: &str) -> Result<File, FileError> {
        create_private(&self.partial.join(name))
    }

    /// Leaves nothing of a snapshot that failed.
    fn finish_or_remove(&self, result: Result<(), SaveError>) -> Result<(), SaveError> {
        if result.is_err() {
            // The failed step is what the caller must hear of.
            let _ = fs::remove_dir_all(&self.partial);
        }
        result
    }

    /// Has everything survive a power cut, then gives it its name.
    fn finish(&self) -> Result<(), SaveError> {
        for entry in fs::read_dir(&self.partial).map_err(FileError::io("read", &self.partial))? {
            files::sync(&entry.map_err(FileError::io("read", &self.partial))?.path())?;
        }
        files::sync(&self.partial)?;
        if fs::symlink_metadata(&self.directory).is_ok() {
            return Err(SaveError::Exists(self.directory.clone()));
        }
        fs::rename(&self.partial, &self.directory).map_err(FileError::io("create", &self.directory))?;
        let parent = self.directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        files::sync(parent.unwrap_or(Path::new(".")))?;
        Ok(())
    }
}

/// Removes the directory `left`, which was found at `path`, if a dead process left it. False when a live one is at it: it
/// holds its directory, or has put one of its own in the place of what was found.
fn sweep(left: &File, path: &Path) -> Result<bool, FileError> {
    if flock(left, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    let found = left.metadata().map_err(FileError::io("look at", path))?;
    let is_found = |there: fs::Metadata| (there.dev(), there.ino()) == (found.dev(), found.ino());
    if !fs::symlink_metadata(path).is_ok_and(is_found) {
        return Ok(false);
    }
    files::remove_dir_optional(path)?;
    Ok(true)
}

/// A new file for reading and writing that only its owner can open.
fn create_private(path: &Path) -> Result<File, FileError> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(FileError::io("create", path))
}

/// A file that is gone when nobody has it open, on the disk of `directory`.
fn nameless(directory: &Path, name: &str) -> Result<File, FileError> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600);
    match options.open(directory) {
        // Not every file system has such files.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)
            ) =>
        {
            let path = directory.join(format!(".{name}-{}", std::process::id()));
            let file = create_private(&path)?;
            files::remove_optional(&path)?;
            Ok(file)
        }
        opened => opened.map_err(FileError::io("create a file in", directory)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_process_left_gives_way_to_a_snapshot() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("snapshot");
        let first = Place::new(&directory).unwrap();
        first.create("memory").unwrap();
        let error = Place::new(&directory).unwrap_err();
        assert!(matches!(error, SaveError::Busy(_)), "{error}");
        let found = File::open(&first.partial).unwrap();
        drop(first);

        let second = Place::new(&directory).unwrap();
        second.create("memory").unwrap();
        assert!(!sweep(&found, &second.partial).unwrap(), "it is not what was found");
        second.finish().unwrap();
        assert!(directory.join("memory").exists());
    }
}
