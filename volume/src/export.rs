//! What is served, and how.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, open, openat2};

use crate::attributes::Owner;

/// What a guest may do to the files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Read them.
    Read,
    /// Everything that who serves may.
    Write,
}

/// A directory to be served.
#[derive(Clone, Debug)]
pub struct Export {
    pub(crate) root: Arc<OwnedFd>,
    pub(crate) descriptors: Arc<OwnedFd>,
    pub(crate) access: Access,
    pub(crate) owner: Owner,
}

impl Export {
    /// The directory `root`, from [`Export::open_root`], served as the user that this process is by now; `descriptors` is
    /// what [`own_descriptors`] gave.
    ///
    /// # Errors
    /// When it is no directory.
    pub fn new(root: OwnedFd, descriptors: OwnedFd, access: Access) -> io::Result<Self> {
        let mode = fstat(&root)?.st_mode;
        if !rustix::fs::FileType::from_raw_mode(mode).is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            root: Arc::new(root),
            descriptors: Arc::new(descriptors),
            access,
            owner: Owner::of_process(),
        })
    }

    /// Opens what is to be served: itself, and not what a symbolic link in its path leads to by now.
    ///
    /// # Errors
    /// When it is not there, or its path has become one with a symbolic link.
    pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?)
    }
}

/// Through this directory a process opens anew what it has a descriptor of. To be called by who serves, before /proc is
/// out of its reach.
///
/// # Errors
/// When /proc is not there.
pub fn own_descriptors() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open("/proc/self/fd", flags, Mode::empty())?)
}
