//! The files that a guest knows: a number for each, and a descriptor that means the file whatever it is called now.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Stat;
use rustix::io::Errno;

/// The number of the directory that is served (linux/fuse.h, `FUSE_ROOT_ID`).
pub(crate) const ROOT: u64 = 1;

/// Numbers from here on are given out; those below are the host's own inode numbers.
const FIRST_GIVEN: u64 = 1 << 63;

/// Which file it is to the host.
type Key = (u64, u64);

/// A file that a guest knows.
#[derive(Debug)]
struct Node {
    /// Opened with `O_PATH`: nothing is read or written through it, and no other file gets its inode number.
    file: Arc<OwnedFd>,
    key: Key,
    /// How often the guest was told of it and has not forgotten it.
    lookups: u64,
}

/// All files that a guest knows. Each is a descriptor, so that there are no more than the process may have.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Key, u64>,
    /// The device whose inode numbers are the guest's too.
    device: u64,
    next: u64,
}

impl Nodes {
    /// The directory that is served, alone.
    pub(crate) fn new(root: OwnedFd, stat: &Stat) -> Self {
        let key = (stat.st_dev, stat.st_ino);
        let root = Node {
            file: Arc::new(root),
            key,
            lookups: 1,
        };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            numbers: HashMap::from([(key, ROOT)]),
            device: stat.st_dev,
            next: FIRST_GIVEN,
        }
    }

    /// The file behind a number.
    ///
    /// # Errors
    /// `ESTALE` when the guest was not told of it.
    pub(crate) fn get(&self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        let node = self.nodes.get(&number).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&node.file))
    }

    /// The number of `file`, of which the guest is told once more.
    pub(crate) fn tell(&mut self, file: OwnedFd, stat: &Stat) -> u64 {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(number) = self.numbers.get(&key) {
            if let Some(node) = self.nodes.get_mut(number) {
                node.lookups = node.lookups.saturating_add(1);
            }
            return *number;
        }
        let is_own = stat.st_dev == self.device && (ROOT + 1..FIRST_GIVEN).contains(&stat.st_ino);
        let number = if is_own { stat.st_ino } else { self.next };
        if !is_own {
            self.next += 1;
        }
        let node = Node {
            file: Arc::new(file),
            key,
            lookups: 1,
        };
        self.nodes.insert(number, node);
        self.numbers.insert(key, number);
        number
    }

    /// The guest forgets that it was told so often. The directory that is served stays.
    pub(crate) fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|_| number != ROOT) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0 {
            self.numbers.remove(&node.key);
            self.nodes.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::fs::{Mode, OFlags, fstat, open};

    use super::*;

    fn opened(path: &Path) -> (OwnedFd, Stat) {
        let file = open(path, OFlags::PATH, Mode::empty()).unwrap();
        let stat = fstat(&file).unwrap();
        (file, stat)
    }

    #[test]
    fn a_file_is_known_until_it_is_forgotten_as_often_as_it_was_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "").unwrap();
        let (root, stat) = opened(directory.path());
        let mut nodes = Nodes::new(root, &stat);
        let tell = |nodes: &mut Nodes| {
            let (file, stat) = opened(&path);
            nodes.tell(file, &stat)
        };
        let number = tell(&mut nodes);
        assert_eq!(tell(&mut nodes), number);
        nodes.forget(number, 1);
        assert!(nodes.get(number).is_ok());
        nodes.forget(number, u64::MAX);
        assert_eq!(nodes.get(number).unwrap_err(), Errno::STALE);
        assert_eq!(tell(&mut nodes), number, "the host's number is kept");

        nodes.forget(ROOT, u64::MAX);
        assert!(nodes.get(ROOT).is_ok());
        assert_eq!(nodes.get(7).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn files_of_another_device_do_not_collide_with_those_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let (root, stat) = opened(directory.path());
        let mut nodes = Nodes::new(root, &stat);
        let (file, mut elsewhere) = opened(directory.path());
        elsewhere.st_dev += 1;
        let number = nodes.tell(file, &elsewhere);
        assert!(number >= FIRST_GIVEN);
        assert_ne!(number, ROOT);
    }
}
