//! What a guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

/// Open files and directories by the number that the guest was given. Each is a descriptor, so that there are no more than
/// the process may have.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    open: HashMap<u64, Arc<OwnedFd>>,
    last: u64,
}

impl Handles {
    /// A number for what was opened.
    pub(crate) fn insert(&mut self, file: OwnedFd) -> u64 {
        self.last += 1;
        self.open.insert(self.last, Arc::new(file));
        self.last
    }

    /// What is open under a number.
    ///
    /// # Errors
    /// `EBADF` when nothing is.
    pub(crate) fn get(&self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        self.open.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// The guest closed it.
    pub(crate) fn remove(&mut self, number: u64) {
        self.open.remove(&number);
    }
}
