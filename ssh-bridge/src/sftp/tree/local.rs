//! The directories that a download makes. Below the first, nothing here follows a link: names come from the guest.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{DOWNLOADED_MODE, TreeError};
use crate::sftp::FileAttributes;

/// What the owner of a directory needs to fill it.
const OWNER: u32 = 0o700;

const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK);

/// An open directory.
#[derive(Clone, Debug)]
pub(super) struct LocalDir {
    descriptor: Arc<OwnedFd>,
    path: PathBuf,
    /// The bits that its owner has only while it is filled.
    lent: u32,
}

impl LocalDir {
    /// The directory at `path`, made if need be. Links are followed: its name is the user's.
    pub(super) fn first(path: &Path, mode: u32) -> Result<Self, TreeError> {
        let made = rustix::fs::mkdir(path, Mode::from_raw_mode(mode | OWNER));
        let descriptor = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Self::new(path.to_owned(), made, descriptor, mode)
    }

    /// The directory `name` in this one, made if need be.
    pub(super) fn enter(&self, name: &OsStr, mode: u32) -> Result<Self, TreeError> {
        let made = rustix::fs::mkdirat(&self.descriptor, name, Mode::from_raw_mode(mode | OWNER));
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = rustix::fs::openat(&self.descriptor, name, flags, Mode::empty());
        Self::new(self.path.join(name), made, descriptor, mode)
    }

    fn new(
        path: PathBuf,
        made: rustix::io::Result<()>,
        opened: rustix::io::Result<OwnedFd>,
        mode: u32,
    ) -> Result<Self, TreeError> {
        let is_new = made.is_ok();
        let descriptor = match made {
            Ok(()) | Err(Errno::EXIST) => opened,
            Err(error) => Err(error),
        };
        let descriptor = descriptor.map_err(|error| TreeError::local("make the directory", &path)(error.into()))?;
        Ok(Self {
            descriptor: Arc::new(descriptor),
            path,
            lent: if is_new { OWNER & !mode } else { 0 },
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The empty file `name`, in place of a link of that name.
    pub(super) fn create_file(&self, name: &OsStr, mode: u32) -> Result<File, TreeError> {
        let open = |flags| rustix::fs::openat(&self.descriptor, name, NEW_FILE | flags, Mode::from_raw_mode(mode));
        let opened = match open(OFlags::TRUNC | OFlags::NOFOLLOW) {
            Err(Errno::LOOP) => {
                rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()).and_then(|()| open(OFlags::EXCL))
            }
            opened => opened,
        };
        opened
            .map(File::from)
            .map_err(|error| TreeError::local("make the file", &self.path.join(name))(error.into()))
    }

    /// The link `name`, in place of a file or link of that name.
    pub(super) fn symlink(&self, target: &Path, name: &OsStr) -> Result<(), TreeError> {
        let link = || rustix::fs::symlinkat(target, &self.descriptor, name);
        let linked = match link() {
            Err(Errno::EXIST) => rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()).and_then(|()| link()),
            linked => linked,
        };
        linked.map_err(|error| TreeError::local("make the link", &self.path.join(name))(error.into()))
    }

    /// Gives it its mode, and with `preserve` its times, once nothing is made in it any more.
    pub(super) fn finish(&self, attributes: &FileAttributes, preserve: bool) -> Result<(), TreeError> {
        let result = if preserve {
            apply(&self.descriptor, attributes)
        } else if self.lent != 0 {
            rustix::fs::fstat(&self.descriptor)
                .and_then(|stat| rustix::fs::fchmod(&self.descriptor, Mode::from_raw_mode(stat.st_mode & !self.lent)))
        } else {
            Ok(())
        };
        result.map_err(|error| TreeError::local("change the attributes of", &self.path)(error.into()))
    }
}

/// The empty file at `path`. Links are followed: its name is the user's.
pub(super) fn create_file(path: &Path, mode: u32) -> Result<File, TreeError> {
    let opened = rustix::fs::open(path, NEW_FILE | OFlags::TRUNC, Mode::from_raw_mode(mode));
    opened
        .map(File::from)
        .map_err(|error| TreeError::local("make the file", path)(error.into()))
}

/// Gives an open file the mode and times of what was copied.
pub(super) fn preserve(file: &File, attributes: &FileAttributes) -> io::Result<()> {
    Ok(apply(file, attributes)?)
}

fn apply(file: impl std::os::fd::AsFd, attributes: &FileAttributes) -> rustix::io::Result<()> {
    if let Some(mode) = attributes.mode() {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & DOWNLOADED_MODE))?;
    }
    if let Some((accessed, modified)) = attributes.times {
        let time = |seconds: u32| Timespec {
            tv_sec: seconds.into(),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time(accessed),
            last_modification: time(modified),
        };
        rustix::fs::futimens(&file, &times)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, LocalDir) {
        let root = tempfile::tempdir().unwrap();
        let directory = LocalDir::first(&root.path().join("copy"), 0o755).unwrap();
        (root, directory)
    }

    #[test]
    fn a_link_never_leads_a_copy_elsewhere() {
        let (root, directory) = root();
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "precious").unwrap();
        let name = OsStr::new("link");
        symlink(&outside, directory.path().join(name)).unwrap();
        assert!(directory.enter(name, 0o755).is_err());

        std::fs::remove_file(directory.path().join(name)).unwrap();
        symlink(outside.join("file"), directory.path().join(name)).unwrap();
        drop(directory.create_file(name, 0o644).unwrap());
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"precious");
        assert!(directory.path().join(name).symlink_metadata().unwrap().is_file());

        directory.symlink(Path::new("again"), name).unwrap();
        directory.symlink(Path::new("and again"), name).unwrap();
        assert_eq!(
            std::fs::read_link(directory.path().join(name)).unwrap(),
            Path::new("and again")
        );
    }

    #[test]
    fn a_directory_that_its_owner_cannot_write_is_filled_first() {
        let (_root, directory) = root();
        let narrow = directory.enter(OsStr::new("narrow"), 0o550).unwrap();
        drop(narrow.create_file(OsStr::new("file"), 0o444).unwrap());
        let attributes = FileAttributes::with_mode(0o550);
        narrow.finish(&attributes, false).unwrap();
        let mode = || narrow.path().metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(), 0o550);

        let again = directory.enter(OsStr::new("narrow"), 0o555).unwrap();
        again.finish(&attributes, false).unwrap();
        assert_eq!(mode(), 0o550, "what was there keeps its mode");
    }

    #[test]
    fn nothing_that_is_copied_runs_with_its_owners_rights() {
        let (_root, directory) = root();
        let file = directory.create_file(OsStr::new("file"), 0o644).unwrap();
        preserve(&file, &FileAttributes::with_mode(0o6755)).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o755);
    }
}
