//! A root file system in a directory of the host.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::content::{ContentError, Segment, Spool};
use crate::digest::{Digest, Hasher};
use crate::layer::is_kept;
use crate::limits::{Budget, LimitError};
use crate::tree::{Attributes, Device, Kind, Tree, TreeError, Xattrs};

/// The longest list of names of extended attributes, in bytes (`XATTR_LIST_MAX`).
const MAX_XATTR_LIST: usize = 64 << 10;

/// Why a directory cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It became another one.
    #[error("{} was replaced while it was read: import it when nothing changes it", .0.display())]
    Replaced(PathBuf),
    /// A file cannot be copied.
    #[error("cannot copy {}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: ContentError,
    },
    /// It is too large.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A file fits nowhere.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Puts the directory at `root` into `tree`, never following a link out of it or into another file system's mount.
pub(crate) fn add(
    root: &Path,
    tree: &mut Tree,
    spool: &mut Spool,
    budget: &mut Budget,
) -> Result<Digest, DirectoryError> {
    let read = |source: Errno| DirectoryError::Read {
        path: root.into(),
        source: source.into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = Rc::new(rustix::fs::open(root, flags, Mode::empty()).map_err(read)?);
    let stat = rustix::fs::fstat(&directory).map_err(read)?;
    let mut walk = Walk {
        tree,
        spool,
        budget,
        hasher: Hasher::new(),
        links: HashMap::new(),
        device: stat.st_dev,
        root,
    };
    walk.add_node(b"", &stat, Kind::Directory(BTreeMap::new()), directory.as_fd())?;
    // Not recursive: a directory's depth is the host's to choose.
    let mut left = Vec::new();
    walk.add_entries(b"", &directory, &mut left)?;
    drop(directory);
    while let Some(unread) = left.pop() {
        let directory = Rc::new(walk.reopen(&unread)?);
        walk.add_entries(&unread.path, &directory, &mut left)?;
    }
    Ok(walk.hasher.finish())
}

/// A directory that was added without what is in it. It is not open meanwhile: so many cannot be as one may hold.
struct Unread {
    path: Vec<u8>,
    parent: Rc<OwnedFd>,
    name: CString,
    inode: u64,
}

struct Walk<'a> {
    tree: &'a mut Tree,
    spool: &'a mut Spool,
    budget: &'a mut Budget,
    hasher: Hasher,
    /// Files with more than one name, by inode.
    links: HashMap<u64, Vec<u8>>,
    device: u64,
    root: &'a Path,
}

impl Walk<'_> {
    fn add_entries(
        &mut self,
        path: &[u8],
        directory: &Rc<OwnedFd>,
        left: &mut Vec<Unread>,
    ) -> Result<(), DirectoryError> {
        let failed = |source: Errno| self.failed(path)(source);
        let entries = rustix::fs::Dir::read_from(&**directory).map_err(failed)?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(self.failed(path))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            let path = match path {
                b"" => name.to_bytes().to_vec(),
                path => [path, b"/", name.to_bytes()].concat(),
            };
            let stat =
                rustix::fs::statat(&**directory, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed(&path))?;
            if let Some(inode) = self.add_entry(&path, directory.as_fd(), &name, &stat)? {
                left.push(Unread {
                    path,
                    parent: Rc::clone(directory),
                    name,
                    inode,
                });
            }
        }
        Ok(())
    }

    fn reopen(&self, unread: &Unread) -> Result<OwnedFd, DirectoryError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = || self.failed(&unread.path);
        let directory = rustix::fs::openat(&*unread.parent, &unread.name, flags, Mode::empty()).map_err(failed())?;
        let stat = rustix::fs::fstat(&directory).map_err(failed())?;
        if (stat.st_dev, stat.st_ino) != (self.device, unread.inode) {
            return Err(DirectoryError::Replaced(
                self.root.join(OsStr::from_bytes(&unread.path)),
            ));
        }
        Ok(directory)
    }

    /// Adds one file. Returns the inode of a directory that is to be read.
    fn add_entry(
        &mut self,
        path: &[u8],
        directory: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> Result<Option<u64>, DirectoryError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if stat.st_nlink > 1 && kind != FileType::Directory {
            if let Some(target) = self.links.get(&stat.st_ino) {
                self.budget.entry(path.len())?;
                self.hasher.update(path);
                return Ok(self.tree.link(path, target).map(|()| None)?);
            }
            self.links.insert(stat.st_ino, path.to_vec());
        }
        // A file may have become another meanwhile: what is opened is what is described.
        let open = |flags: OFlags| {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name, flags, Mode::empty())
        };
        match kind {
            FileType::Directory => {
                let child = open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(self.failed(path))?;
                let stat = rustix::fs::fstat(&child).map_err(self.failed(path))?;
                self.add_node(path, &stat, Kind::Directory(BTreeMap::new()), child.as_fd())?;
                // A mount point stays an empty directory.
                Ok((stat.st_dev == self.device).then_some(stat.st_ino))
            }
            FileType::RegularFile => {
                let file = open(OFlags::RDONLY | OFlags::NONBLOCK).map_err(self.failed(path))?;
                let stat = rustix::fs::fstat(&file).map_err(self.failed(path))?;
                let kind = Kind::File(self.add_content(path, &file, &stat)?);
                self.add_node(path, &stat, kind, file.as_fd()).map(|()| None)
            }
            _ => {
                let kind = match kind {
                    FileType::Symlink => {
                        let target = rustix::fs::readlinkat(directory, name, Vec::new()).map_err(self.failed(path))?;
                        Kind::Symlink(target.into_bytes().into())
                    }
                    // Overlayfs takes this device for a whiteout of its own.
                    FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(None),
                    FileType::CharacterDevice => Kind::CharDevice(device(stat)),
                    FileType::BlockDevice => Kind::BlockDevice(device(stat)),
                    FileType::Fifo => Kind::Fifo,
                    _ => Kind::Socket,
                };
                let file = open(OFlags::PATH).map_err(self.failed(path))?;
                self.add_node(path, stat, kind, file.as_fd()).map(|()| None)
            }
        }
    }

    fn add_content(
        &mut self,
        path: &[u8],
        file: &OwnedFd,
        stat: &Stat,
    ) -> Result<crate::content::Content, DirectoryError> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        self.budget.file(size)?;
        let segments = data_segments(file, size).map_err(self.failed(path))?;
        let mut reader = Segments {
            file,
            segments: &segments,
            read: 0,
            hasher: &mut self.hasher,
        };
        self.spool
            .add(size, &segments, &mut reader)
            .map_err(|source| DirectoryError::Content {
                path: self.root.join(OsStr::from_bytes(path)),
                source,
            })
    }

    fn add_node(&mut self, path: &[u8], stat: &Stat, kind: Kind, file: BorrowedFd<'_>) -> Result<(), DirectoryError> {
        let xattrs = xattrs(file).map_err(self.failed(path))?;
        let metadata: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.budget.entry(path.len() + metadata)?;
        let attributes = Attributes {
            mode: u16::try_from(stat.st_mode & 0o7777).expect("these are twelve bits"),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
            mtime_nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            xattrs,
        };
        // What the debug form tells apart, differs; writing into a hash does not fail.
        let _ = write!(self.hasher, "{path:?}{attributes:?}{kind:?}");
        self.tree.insert(path, attributes, kind)?;
        Ok(())
    }

    fn failed(&self, path: &[u8]) -> impl FnOnce(Errno) -> DirectoryError + use<> {
        let path = self.root.join(OsStr::from_bytes(path));
        move |source| DirectoryError::Read {
            path,
            source: source.into(),
        }
    }
}

fn device(stat: &Stat) -> Device {
    Device {
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
    }
}

/// The parts of a file that are no holes; all of it where the file system cannot tell.
fn data_segments(file: &OwnedFd, size: u64) -> Result<Vec<Segment>, Errno> {
    let mut segments = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
            Err(error) => return Err(error),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))
            .unwrap_or(size)
            .clamp(start, size);
        if end == start {
            break;
        }
        segments.push(Segment {
            offset: start,
            len: end - start,
        });
        position = end;
    }
    Ok(segments)
}

/// The segments of a file, one after the other.
struct Segments<'a> {
    file: &'a OwnedFd,
    segments: &'a [Segment],
    /// Bytes read of the first of them.
    read: u64,
    hasher: &'a mut Hasher,
}

impl Read for Segments<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((first, rest)) = self.segments.split_first() {
            if self.read < first.len {
                let room = usize::try_from(first.len - self.read)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let read = rustix::io::pread(self.file, &mut buffer[..room], first.offset + self.read)?;
                self.hasher.update(&buffer[..read]);
                self.read += read as u64;
                return Ok(read);
            }
            (self.segments, self.read) = (rest, 0);
        }
        Ok(0)
    }
}

/// The extended attributes that go into an image. By way of /proc, which knows a file opened for its path only.
fn xattrs(file: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut list = vec![0; MAX_XATTR_LIST];
    let len = match rustix::fs::listxattr(path.as_str(), &mut list) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => 0,
        Err(error) => return Err(error),
    };
    let mut xattrs = BTreeMap::new();
    let names = list[..len].split(|&byte| byte == 0);
    for name in names.filter(|name| !name.is_empty() && is_kept(name)) {
        let mut value = vec![0; usize::from(u16::MAX)];
        match rustix::fs::getxattr(path.as_str(), name, &mut value) {
            Ok(len) => xattrs.insert(name.into(), value[..len].into()),
            // It is gone, or not for this user to see.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => None,
            Err(error) => return Err(error),
        };
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use crate::limits::Limits;
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

    fn taken(root: &Path) -> (Tree, Digest) {
        let mut tree = Tree::new(1000);
        let mut spool = Spool::new(tempfile::tempfile().unwrap());
        let digest = add(root, &mut tree, &mut spool, &mut Budget::new(Limits::default())).unwrap();
        (tree, digest)
    }

    #[test]
    fn a_directory_is_taken_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("a/b")).unwrap();
        std::fs::write(path("a/b/file"), "contents").unwrap();
        std::fs::set_permissions(path("a/b/file"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        std::fs::hard_link(path("a/b/file"), path("z")).unwrap();
        symlink("/etc", path("link")).unwrap();
        let sparse = std::fs::File::create(path("sparse")).unwrap();
        sparse.write_all_at(b"x", 10 << 20).unwrap();
        let (tree, digest) = taken(root.path());
        let node = |path: &str| tree.node(tree.lookup(path.as_bytes()).unwrap());
        assert_eq!(node("a/b/file").attributes.mode, 0o4711);
        assert_eq!(tree.lookup(b"z"), tree.lookup(b"a/b/file"));
        assert!(matches!(&node("link").kind, Kind::Symlink(target) if **target == *b"/etc"));
        assert!(matches!(&node("z").kind, Kind::File(Content::Inline(bytes)) if **bytes == *b"contents"));
        assert!(matches!(&node("sparse").kind, Kind::File(content) if content.size() == (10 << 20) + 1));
        assert_eq!(tree.lookup(b"etc"), None);
        assert_eq!(taken(root.path()).1, digest, "the digest of the same directory");
        std::fs::write(path("a/b/file"), "Contents").unwrap();
        assert_ne!(taken(root.path()).1, digest, "the digest of another directory");
    }
}
