//! The lock that says whether a sandbox runs.
//!
//! It is taken only under the lock of the store, so whoever holds that one and finds a sandbox not running can rely on it.
//!
//! It is an open file description lock (fcntl(2), `F_OFD_SETLK`): it belongs to the open file, so the starter takes it
//! and its VMM process inherits it, and it ends with that process however that ends. Two bytes of the file are locked:
//!
//! - `RUN` says that the sandbox runs. Only starters lock it, so to find it locked is never a false alarm; others ask
//!   with `F_OFD_GETLK`, which takes nothing.
//! - `WAIT` is what others wait for. They lock it shared for a moment when the VMM process is gone, so a start that
//!   finds it locked just waits for that moment to pass.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

const RUN: libc::off_t = 0;
const WAIT: libc::off_t = 1;

/// Held by the VMM process as long as it lives, and by a starter before that.
#[derive(Debug)]
pub struct RunLock(File);

impl RunLock {
    /// Takes the lock, or says that somebody has it. The file must exist.
    ///
    /// # Errors
    /// When the file cannot be opened or the file system has no locks.
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match fcntl(&file, libc::F_OFD_SETLK, libc::F_WRLCK, RUN) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => return Ok(None),
            Err(error) => return Err(error),
        }
        fcntl(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, WAIT)?;
        Ok(Some(Self(file)))
    }

    /// The lock that a starter left in `fd`.
    pub fn inherited(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }
}

impl AsFd for RunLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether anybody holds the lock of the file at `path`. Takes nothing itself.
///
/// # Errors
/// When the file cannot be opened.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    Ok(fcntl(&file, libc::F_OFD_GETLK, libc::F_WRLCK, RUN)? != libc::F_UNLCK)
}

/// Blocks until nobody holds the lock of the file at `path`.
///
/// # Errors
/// When the file cannot be opened or locked.
pub fn wait_released(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    fcntl(&file, libc::F_OFD_SETLKW, libc::F_RDLCK, WAIT).map(|_| ())
}

/// One lock operation on one byte; returns the lock type the kernel left in the structure.
fn fcntl(file: &File, command: libc::c_int, kind: libc::c_int, byte: libc::off_t) -> io::Result<libc::c_int> {
    let narrow = |value: libc::c_int| libc::c_short::try_from(value).expect("the lock constants are small");
    loop {
        let mut lock = libc::flock {
            l_type: narrow(kind),
            l_whence: narrow(libc::SEEK_SET),
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: `lock` is a valid flock structure that outlives the call; the descriptor is open.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
        if result == 0 {
            return Ok(lock.l_type.into());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock_file() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        File::create(&path).unwrap();
        (dir, path)
    }

    #[test]
    fn the_lock_is_exclusive_and_ends_with_its_last_copy() {
        let (_dir, path) = lock_file();
        assert!(!is_held(&path).unwrap());
        let lock = RunLock::try_acquire(&path).unwrap().unwrap();
        let inherited = lock.as_fd().try_clone_to_owned().unwrap();
        drop(lock);
        assert!(is_held(&path).unwrap());
        assert!(RunLock::try_acquire(&path).unwrap().is_none());
        drop(RunLock::inherited(inherited));
        assert!(!is_held(&path).unwrap());
        assert!(RunLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_waiter_returns_when_the_holder_ends_and_never_blocks_a_start() {
        let (_dir, path) = lock_file();
        let lock = RunLock::try_acquire(&path).unwrap().unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || wait_released(&path)
        });
        drop(lock);
        assert!(RunLock::try_acquire(&path).unwrap().is_some());
        waiter.join().unwrap().unwrap();
    }
}
