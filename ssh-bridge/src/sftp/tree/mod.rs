//! Copies of files and trees between this machine and a guest.
//!
//! Several files are under way at once. Links in a tree stay links, and none of them is ever followed, neither one that
//! is copied nor one that the guest put where a directory or file of the copy goes: a guest cannot lead a download out of
//! the directory it was sent to. What is neither file, directory nor link is not copied.

mod download;
mod local;
mod upload;
mod walk;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

use super::{SftpClient, SftpError};
use walk::{Files, MAX_DEPTH};

/// Files under way at once. Each holds up to 2 MiB.
const FILES: usize = 8;

/// The bits of a mode that are copied to this machine: a guest makes nobody here run anything with its owner's rights.
const DOWNLOADED_MODE: u32 = 0o777;

/// Who is told of the steps of a copy.
pub type Observer = dyn Fn(TreeEvent<'_>) + Send + Sync;

/// How a tree is copied.
#[derive(Clone, Default)]
pub struct TreeOptions {
    /// Whether copies get exactly the mode and the times (in seconds) of what was copied. Otherwise they are new files,
    /// with its permissions less the umask.
    pub preserve: bool,
    /// Is told of each step, from any thread. It must not wait.
    pub observer: Option<Arc<Observer>>,
}

impl fmt::Debug for TreeOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TreeOptions")
            .field("preserve", &self.preserve)
            .finish_non_exhaustive()
    }
}

/// A step of a copy.
#[derive(Debug)]
pub enum TreeEvent<'a> {
    /// The content of a file begins to move.
    File {
        /// Where it comes from.
        from: &'a Path,
        /// Its size, in bytes.
        size: u64,
    },
    /// Bytes that have arrived.
    Moved(u64),
    /// Something in the tree was not copied. The copy goes on.
    Failed(&'a TreeError),
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TreeSummary {
    /// Files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// What was not copied, each told to the observer.
    pub failed: u64,
}

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The guest's side.
    #[error(transparent)]
    Sftp(#[from] SftpError),
    /// This machine's side.
    #[error("cannot {operation} {path:?}")]
    Local {
        /// What was tried.
        operation: &'static str,
        /// The file here.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A device, a FIFO or a socket.
    #[error("{0:?} is neither a file nor a directory nor a link, and is not copied")]
    Special(PathBuf),
    /// More directories in directories than are copied.
    #[error("{0:?} is deeper than the {MAX_DEPTH} levels of directories that are copied")]
    TooDeep(PathBuf),
    /// A part of the copy was ended from outside.
    #[error("the copy was given up")]
    GivenUp(#[from] JoinError),
}

impl TreeError {
    fn local(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Local {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the rest of the tree would fail, too.
    fn is_fatal(&self) -> bool {
        match self {
            Self::Sftp(error) => error.is_end(),
            Self::Local { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Special(_) | Self::TooDeep(_) => false,
            Self::GivenUp(_) => true,
        }
    }
}

impl SftpClient {
    /// Copies the file or tree at `local` to `remote`: a directory into a directory of that name, made if need be. A link
    /// at `local` itself is followed.
    ///
    /// # Errors
    /// When nothing can be copied, the session ends, or a disk is full. What fails below a directory is counted.
    pub async fn upload(
        &self,
        local: impl AsRef<Path>,
        remote: impl AsRef<Path>,
        options: &TreeOptions,
    ) -> Result<TreeSummary, TreeError> {
        let copy = Arc::new(Transfer::new(self, options));
        upload::run(&copy, local.as_ref(), remote.as_ref()).await?;
        Ok(copy.summary())
    }

    /// Copies the file or tree at `remote` to `local`: a directory into a directory of that name, made if need be. A link
    /// at `remote` itself is followed.
    ///
    /// # Errors
    /// As [`Self::upload`].
    pub async fn download(
        &self,
        remote: impl AsRef<Path>,
        local: impl AsRef<Path>,
        options: &TreeOptions,
    ) -> Result<TreeSummary, TreeError> {
        let copy = Arc::new(Transfer::new(self, options));
        download::run(&copy, remote.as_ref(), local.as_ref()).await?;
        Ok(copy.summary())
    }
}

/// A copy that is going on.
struct Transfer {
    sftp: SftpClient,
    options: TreeOptions,
    room: Arc<Semaphore>,
    files: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
}

impl Transfer {
    fn new(sftp: &SftpClient, options: &TreeOptions) -> Self {
        Self {
            sftp: sftp.clone(),
            options: options.clone(),
            room: Arc::new(Semaphore::new(FILES)),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    fn summary(&self) -> TreeSummary {
        TreeSummary {
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    fn tell(&self, event: TreeEvent<'_>) {
        if let Some(observer) = &self.options.observer {
            observer(event);
        }
    }

    fn file_begins(&self, from: &Path, size: u64) {
        self.tell(TreeEvent::File { from, size });
    }

    fn file_ends(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    fn moved(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell(TreeEvent::Moved(bytes));
    }

    /// Goes on after an entry failed, unless everything else would.
    fn note(&self, result: Result<(), TreeError>) -> Result<(), TreeError> {
        match result {
            Err(error) if !error.is_fatal() => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.tell(TreeEvent::Failed(&error));
                Ok(())
            }
            result => result,
        }
    }

    /// Waits until another file may be under way.
    async fn room(&self) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.room).acquire_owned().await;
        room.expect("the semaphore is never closed")
    }

    /// Takes the results of files, all of them or those that are there.
    async fn collect(&self, files: &mut Files, all: bool) -> Result<(), TreeError> {
        while let Some(joined) = match all {
            true => files.join_next().await,
            false => files.try_join_next(),
        } {
            self.note(joined.map_err(TreeError::from).flatten())?;
        }
        Ok(())
    }
}

/// Runs what may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TreeError> + Send + 'static,
) -> Result<T, TreeError> {
    tokio::task::spawn_blocking(work).await?
}
