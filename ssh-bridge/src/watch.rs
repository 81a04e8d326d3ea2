//! What changes in a directory of a guest, as it happens (`msb_protocol::watch`).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use msb_protocol::frame::{FrameLength, Frames, Malformed};
use msb_protocol::watch::{self as wire, Change, MAX_PATH, Reply, Request};
use tokio::io::AsyncWriteExt;

use crate::client::{
    ClientError, Program, Session, SessionEvent, SessionEvents, SessionStdin, SpawnOptions, SshClient,
};

/// How to watch.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchOptions {
    /// Whether the directories in it are watched, too; no link is followed to one.
    pub recursive: bool,
}

/// What changed. Paths are the guest's bytes, relative to what is watched, whose own path is empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WatchEvent {
    /// It was made, or came from where nobody watches.
    Created {
        /// What.
        path: PathBuf,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// Its content changed.
    Modified {
        /// What.
        path: PathBuf,
    },
    /// Its mode, owner, times or other attributes changed.
    Attributes {
        /// What.
        path: PathBuf,
    },
    /// It was removed, or went where nobody watches.
    Removed {
        /// What.
        path: PathBuf,
        /// Whether it was a directory.
        is_dir: bool,
    },
    /// It has another name. What had that name before is gone.
    Renamed {
        /// What it was called.
        from: PathBuf,
        /// What it is called.
        to: PathBuf,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// This directory cannot be watched: what changes in it is not told.
    Unwatched {
        /// Which.
        path: PathBuf,
        /// Why not, in the guest's words.
        message: String,
    },
    /// Changes were not told, because too many came or too few were taken. What is there now must be listed to be known.
    Lost {
        /// How many, if that is known.
        changes: Option<u64>,
    },
}

impl From<Change> for WatchEvent {
    fn from(change: Change) -> Self {
        let path_of = |bytes| PathBuf::from(OsString::from_vec(bytes));
        match change {
            Change::Created { path, is_dir } => Self::Created {
                path: path_of(path),
                is_dir,
            },
            Change::Modified { path } => Self::Modified { path: path_of(path) },
            Change::Attributes { path } => Self::Attributes { path: path_of(path) },
            Change::Removed { path, is_dir } => Self::Removed {
                path: path_of(path),
                is_dir,
            },
            Change::Renamed { from, to, is_dir } => Self::Renamed {
                from: path_of(from),
                to: path_of(to),
                is_dir,
            },
            Change::Unwatched { path, message } => Self::Unwatched {
                path: path_of(path),
                message,
            },
            Change::Lost { changes } => Self::Lost {
                changes: Some(changes).filter(|changes| *changes > 0),
            },
        }
    }
}

/// Why something is not watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The connection, or the session on it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No path of a guest is like that.
    #[error("cannot watch {0:?}: a path has from 1 to {MAX_PATH} bytes, none of them zero")]
    Path(PathBuf),
    /// The guest refused.
    #[error("cannot watch {path:?}: {}", message.escape_debug())]
    Refused {
        /// What was to be watched.
        path: PathBuf,
        /// Why not, in the guest's words.
        message: String,
    },
    /// The guest's agent is of another version.
    #[error("the guest's agent speaks version {version} of watching files, which this msb does not")]
    Version {
        /// The version.
        version: u32,
    },
    /// The guest sends no frames.
    #[error("the guest's agent does not keep to the protocol of watching files")]
    Frame(#[from] FrameLength),
    /// The guest sends no messages.
    #[error("the guest's agent does not keep to the protocol of watching files")]
    Malformed(#[from] Malformed),
    /// The guest sends messages that have no place.
    #[error("the guest's agent does not keep to the protocol of watching files: it sent {0}")]
    Protocol(&'static str),
    /// The channel ended before it was told why.
    #[error("the guest's agent stopped watching {0:?} without a word")]
    Ended(PathBuf),
}

/// Something that is watched, until this is dropped. What nobody takes waits in the guest, and what does not fit there is
/// lost, which is told.
#[derive(Debug)]
pub struct Watcher {
    path: PathBuf,
    /// Its end would be that of the watching.
    _stdin: SessionStdin,
    events: SessionEvents,
    frames: Frames,
    is_over: bool,
}

impl Watcher {
    /// Watches a file or directory; a relative path begins in the user's home. When this returns, all that changes is
    /// told.
    ///
    /// # Errors
    /// When it is not there, the guest cannot watch it, or the connection breaks.
    pub async fn start(client: &SshClient, path: impl AsRef<Path>, options: WatchOptions) -> Result<Self, WatchError> {
        let path = path.as_ref();
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_PATH || bytes.contains(&0) {
            return Err(WatchError::Path(path.into()));
        }
        let subsystem = Program::Subsystem(wire::SUBSYSTEM.into());
        let Session { mut stdin, events, .. } = client.spawn(&subsystem, &SpawnOptions::default()).await?;
        let mut requests = Vec::new();
        Request::Hello { version: wire::VERSION }.encode(&mut requests);
        Request::Watch {
            path: bytes.to_vec(),
            recursive: options.recursive,
        }
        .encode(&mut requests);
        // That the channel takes nothing is told by its replies.
        let _ = stdin.write_all(&requests).await;
        let mut watcher = Self {
            path: path.into(),
            _stdin: stdin,
            events,
            frames: Frames::default(),
            is_over: false,
        };
        match watcher.reply().await? {
            Reply::Hello { version: wire::VERSION } => {}
            Reply::Hello { version } => return Err(WatchError::Version { version }),
            Reply::Failed { message } => return Err(watcher.refused(message)),
            _ => return Err(WatchError::Protocol("something else than its version")),
        }
        match watcher.reply().await? {
            Reply::Watching => Ok(watcher),
            Reply::Failed { message } => Err(watcher.refused(message)),
            _ => Err(WatchError::Protocol("no answer")),
        }
    }

    /// The next change; nothing once what was watched is gone. Nothing is lost when this is dropped before it is done.
    ///
    /// # Errors
    /// When the guest cannot watch any more, or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, WatchError> {
        if self.is_over {
            return Ok(None);
        }
        let reply = self.reply().await;
        self.is_over = !matches!(reply, Ok(Reply::Change(_)));
        match reply? {
            Reply::Change(change) => Ok(Some(change.into())),
            Reply::Gone => Ok(None),
            Reply::Failed { message } => Err(self.refused(message)),
            Reply::Hello { .. } | Reply::Watching => Err(WatchError::Protocol("an answer that was not asked for")),
        }
    }

    async fn reply(&mut self) -> Result<Reply, WatchError> {
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                return Ok(Reply::decode(frame)?);
            }
            match self.events.next().await? {
                Some(SessionEvent::Stdout(bytes)) => self.frames.push(&bytes),
                Some(SessionEvent::Stderr(_) | SessionEvent::Eof) => {}
                Some(SessionEvent::Exit(_)) | None => return Err(WatchError::Ended(self.path.clone())),
            }
        }
    }

    fn refused(&self, message: String) -> WatchError {
        WatchError::Refused {
            path: self.path.clone(),
            message,
        }
    }
}
