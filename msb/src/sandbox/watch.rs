//! Waiting for a sandbox's state to change.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::Sandbox;
use super::state::State;
use crate::store::StoreError;
use crate::store::files::FileError;

/// How long a change can go unnoticed that touches no file: the end of a VMM process that was killed.
const RECHECK: Duration = Duration::from_millis(250);

impl Sandbox {
    /// Blocks until the state is one that `is_awaited`, or `timeout` is over: then the state is what it is.
    ///
    /// # Errors
    /// When the sandbox was removed or cannot be watched.
    pub fn wait_until(&self, timeout: Duration, is_awaited: impl Fn(&State) -> bool) -> Result<State, StoreError> {
        let deadline = Instant::now() + timeout;
        let dir = self.dir();
        let watch = || -> io::Result<_> {
            let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            // Records appear by a rename.
            inotify::add_watch(&inotify, dir.path(), inotify::WatchFlags::MOVED_TO)?;
            Ok(inotify)
        };
        let state = self.state()?;
        if is_awaited(&state) {
            return Ok(state);
        }
        let inotify = watch().map_err(FileError::io("watch", dir.path()))?;
        loop {
            let state = self.state()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if is_awaited(&state) || left.is_zero() {
                return Ok(state);
            }
            let pause = Timespec::try_from(left.min(RECHECK)).expect("a quarter of a second fits");
            match poll(&mut [PollFd::new(&inotify, PollFlags::IN)], Some(&pause)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(FileError::io("watch", dir.path())(errno.into()).into()),
            }
            drain(&inotify);
        }
    }
}

/// Throws the events away: what they say is read from the records.
fn drain(inotify: &impl std::os::fd::AsFd) {
    let mut buffer = [0_u8; 4096];
    while rustix::io::read(inotify, &mut buffer).is_ok_and(|read| read > 0) {}
}
