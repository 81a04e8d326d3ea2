//! What a starter tells its VMM process: one JSON argument, and two descriptors.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sandbox::deadline::TimeLimit;
use crate::store::layout::Layout;
use crate::store::names::SandboxId;

/// The argument, as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VmmArgs {
    /// `$MSB_HOME`.
    pub home: PathBuf,
    /// `$MSB_RUNTIME_DIR`.
    pub runtime: PathBuf,
    /// The sandbox.
    pub id: SandboxId,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Whether all guests shall have the kernel's code from its file.
    pub share_code: bool,
    /// Archives of the shared image.
    pub initramfs: Vec<PathBuf>,
    /// What the guest has in memory that it shares with others.
    pub rom: Option<PathBuf>,
    /// Disk with the image's tools.
    pub tools: PathBuf,
    /// What becomes of the sandbox when the starter ends.
    pub lifetime: Lifetime,
    /// How long it may run.
    pub limit: TimeLimit,
    /// What its log holds, as `MSB_LOG` says: its environment is empty.
    pub log: Option<String>,
    /// The descriptor that holds the sandbox's lock.
    pub lock_fd: RawFd,
    /// The descriptor of the socket to the starter.
    pub status_fd: RawFd,
    /// What the guest goes on from, if it does not boot.
    pub saved: Option<SavedFds>,
}

/// Descriptors of the files of a saved VM.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SavedFds {
    /// Of its state.
    pub state: RawFd,
    /// Of its memory.
    pub memory: RawFd,
}

/// What becomes of a sandbox when its starter ends.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifetime {
    /// It lives on.
    Detached,
    /// It lives on if it was ready before; else it is stopped and removed.
    DetachedWhenReady,
    /// It is stopped and removed.
    OfStarter,
}

impl VmmArgs {
    /// The two directories.
    pub fn layout(&self) -> Layout {
        Layout {
            home: self.home.clone(),
            runtime: self.runtime.clone(),
        }
    }
}
