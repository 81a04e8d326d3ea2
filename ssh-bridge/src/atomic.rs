//! Files that are seen either as they were or as they shall be, and never by two writers at once.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

/// A file that is complete, but not yet in its place. Dropped, it is removed.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn new(target: &Path, mode: u32, content: &[u8]) -> io::Result<Self> {
        let path = draft_path(target)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let written = file.write_all(content);
        let draft = Self { path, file };
        written?;
        draft.file.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(draft)
    }

    fn place(self, target: &Path, flags: RenameFlags) -> io::Result<()> {
        self.file.sync_all()?;
        match renameat_with(CWD, &self.path, CWD, target, flags) {
            // Some network file systems know no flags: a link does not replace either.
            Err(Errno::INVAL) if flags == RenameFlags::NOREPLACE => fs::hard_link(&self.path, target)?,
            placed => placed?,
        }
        sync_directory(target)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename there is nothing left under this name.
        let _ = fs::remove_file(&self.path);
    }
}

fn draft_path(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(format!(".{:016x}.tmp", u64::from_ne_bytes(random)));
    Ok(target.with_file_name(draft))
}

fn sync_directory(target: &Path) -> io::Result<()> {
    match target.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Puts `content` at `target`, over whatever was there, with exactly this `mode`.
pub(crate) fn replace(target: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    Draft::new(target, mode, content)?.place(target, RenameFlags::empty())
}

/// Puts `content` at `target` with the mode and owner that the file there has, or with `mode` where there is none.
pub(crate) fn replace_keeping_mode(target: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let Some(old) = absent_is_none(fs::metadata(target))? else {
        return replace(target, mode, content);
    };
    let draft = Draft::new(target, old.mode() & 0o7777, content)?;
    if draft.file.metadata()?.uid() != old.uid() {
        std::os::unix::fs::fchown(&draft.file, Some(old.uid()), Some(old.gid()))?;
    }
    draft.place(target, RenameFlags::empty())
}

/// Puts `content` at `target` unless something is there: `false` then.
pub(crate) fn create(target: &Path, mode: u32, content: &[u8]) -> io::Result<bool> {
    match Draft::new(target, mode, content)?.place(target, RenameFlags::NOREPLACE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        placed => placed.map(|()| true),
    }
}

/// Adds `content` to the file at `target`, which has `len` bytes or, without any, need not exist and gets this `mode`.
/// Nobody waits for the disk.
pub(crate) fn append(target: &Path, mode: u32, len: usize, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(mode).open(target)?;
    let written = file.write_all(content);
    if written.is_err() {
        // On a full disk, part of it may be there; the error is what to tell.
        let _ = file.set_len(len as u64);
    }
    written
}

/// Removes what the file at `target` has after `len` bytes. Nobody waits for the disk.
pub(crate) fn cut(target: &Path, len: usize) -> io::Result<()> {
    OpenOptions::new().write(true).open(target)?.set_len(len as u64)
}

/// Reads a file that may not exist.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    absent_is_none(fs::read(path))
}

/// Removes a file that may not exist.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    absent_is_none(fs::remove_file(path)).map(drop)
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Waits until no other process holds the lock at `path`, and holds it until the result is dropped.
///
/// The lock is a file of its own: the ones it guards are replaced, and a lock on them with them.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            locked => return Ok(locked.map(|()| file)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    #[test]
    fn a_replaced_file_has_the_asked_mode_and_leaves_no_draft() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("key");
        fs::write(&target, "old").unwrap();
        replace(&target, 0o600, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(directory.path()), ["key"]);
    }

    #[test]
    fn a_file_that_exists_is_not_created_over() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("key");
        assert!(create(&target, 0o600, b"first").unwrap());
        assert!(!create(&target, 0o600, b"second").unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"first");
        assert_eq!(names(directory.path()), ["key"]);
    }

    #[test]
    fn a_file_grows_and_shrinks_at_its_end_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("log");
        append(&target, 0o600, 0, b"one\n").unwrap();
        let before = fs::metadata(&target).unwrap();
        assert_eq!(before.mode() & 0o7777, 0o600);
        append(&target, 0o644, 4, b"two\n").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"one\ntwo\n");
        cut(&target, 4).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"one\n");
        let after = fs::metadata(&target).unwrap();
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_draft() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("taken");
        fs::create_dir_all(target.join("inner")).unwrap();
        assert!(replace(&target, 0o600, b"new").is_err());
        assert_eq!(names(directory.path()), ["taken"]);
    }
}
