//! What is done to files for a guest.
//!
//! A name is one component, looked up in a directory that is held open: nothing that happens to the path of that directory
//! meanwhile leads elsewhere. A file is opened by the descriptor that it is known by, never by its name once more.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::FileAttr;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, SeekFrom, Stat, StatVfs, Timestamps,
    chmodat, fallocate, fdatasync, fstat, fstatvfs, fsync, ftruncate, linkat, mkdirat, mknodat, openat, openat2,
    readlinkat, renameat_with, seek, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pread, pwrite};

use crate::export::{Access, Export};
use crate::handles::Handles;
use crate::nodes::Nodes;

/// What a guest chooses of how a file is opened; the rest is for its own kernel.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

/// What is opened must not make its server wait, and must not become its terminal.
const ALWAYS: OFlags = OFlags::CLOEXEC.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A name leads to the entry itself, and nowhere else.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// The bits that make a program run as somebody else. No guest sets them: it would lend the rights of who serves.
const SET_ID: u32 = 0o6000;

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// The files of an export, with what its guest knows of them and has open.
#[derive(Debug)]
pub(crate) struct Files {
    export: Export,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
}

/// What of a file is to change.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) times: Option<Timestamps>,
}

impl Files {
    /// All that is known is the directory.
    pub(crate) fn new(export: &Export) -> Result<Self> {
        let root = export.root.try_clone().map_err(|_| Errno::MFILE)?;
        let stat = fstat(&root)?;
        Ok(Self {
            export: export.clone(),
            nodes: Mutex::new(Nodes::new(root, &stat)),
            handles: Mutex::default(),
        })
    }

    pub(crate) fn lookup(&self, parent: u64, name: &OsStr) -> Result<FileAttr> {
        let parent = self.node(parent)?;
        self.tell(find(&parent, name)?)
    }

    pub(crate) fn forget(&self, node: u64, times: u64) {
        self.nodes().forget(node, times);
    }

    /// Of what is open as `handle`, else of what `node` is.
    pub(crate) fn attributes(&self, node: u64, handle: Option<u64>) -> Result<FileAttr> {
        let file = match handle {
            Some(handle) => self.handle(handle)?,
            None => self.node(node)?,
        };
        Ok(self.export.owner.attributes(node, &fstat(&file)?))
    }

    pub(crate) fn change(&self, node: u64, handle: Option<u64>, change: &Change) -> Result<FileAttr> {
        self.check_writable()?;
        let file = self.node(node)?;
        let stat = fstat(&file)?;
        if !self.export.owner.has_already(&stat, change.uid, change.gid) {
            return Err(Errno::PERM);
        }
        if let Some(mode) = change.mode {
            if mode & SET_ID & !stat.st_mode != 0 {
                return Err(Errno::PERM);
            }
            if FileType::from_raw_mode(stat.st_mode).is_symlink() {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = Mode::from_raw_mode(mode & 0o7777);
            self.through_descriptor(&file, |directory, name| {
                chmodat(directory, name, mode, AtFlags::empty())
            })?;
        }
        if let Some(size) = change.size {
            match handle {
                Some(handle) => ftruncate(self.handle(handle)?, size)?,
                None => ftruncate(self.reopen(&file, &stat, OFlags::WRONLY)?, size)?,
            }
        }
        if let Some(times) = &change.times {
            self.through_descriptor(&file, |directory, name| {
                utimensat(directory, name, times, AtFlags::empty())
            })?;
        }
        Ok(self.export.owner.attributes(node, &fstat(&file)?))
    }

    pub(crate) fn read_link(&self, node: u64) -> Result<Vec<u8>> {
        Ok(readlinkat(self.node(node)?, "", Vec::new())?.into_bytes())
    }

    /// Makes an entry that is no directory: a file, a pipe or a socket, which are nothing but names outside of the guest.
    pub(crate) fn make_node(&self, parent: u64, name: &OsStr, mode: u32) -> Result<FileAttr> {
        let kind = FileType::from_raw_mode(mode);
        if !(kind.is_file() || kind.is_fifo() || kind.is_socket()) {
            return Err(Errno::PERM);
        }
        self.add(parent, name, |directory| {
            mknodat(directory, name, kind, Mode::from_raw_mode(mode & 0o777), 0)
        })
    }

    pub(crate) fn make_directory(&self, parent: u64, name: &OsStr, mode: u32) -> Result<FileAttr> {
        let mode = Mode::from_raw_mode(mode & 0o1777);
        self.add(parent, name, |directory| mkdirat(directory, name, mode))
    }

    /// Makes a symbolic link, whatever it says: only the guest will follow it.
    pub(crate) fn make_symlink(&self, parent: u64, name: &OsStr, target: &Path) -> Result<FileAttr> {
        self.add(parent, name, |directory| symlinkat(target, directory, name))
    }

    pub(crate) fn make_link(&self, node: u64, parent: u64, name: &OsStr) -> Result<FileAttr> {
        let file = self.node(node)?;
        self.add(parent, name, |directory| {
            self.through_descriptor(&file, |descriptors, number| {
                linkat(descriptors, number, directory, name, AtFlags::SYMLINK_FOLLOW)
            })
        })
    }

    pub(crate) fn remove(&self, parent: u64, name: &OsStr, flags: AtFlags) -> Result<()> {
        self.check_writable()?;
        unlinkat(self.node(parent)?, checked(name)?, flags)
    }

    pub(crate) fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Result<()> {
        self.check_writable()?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL);
        }
        let directories = (self.node(from.0)?, self.node(to.0)?);
        renameat_with(directories.0, checked(from.1)?, directories.1, checked(to.1)?, flags)
    }

    pub(crate) fn open(&self, node: u64, flags: i32) -> Result<u64> {
        let flags = open_flags(flags);
        if flags.intersects(OFlags::ACCMODE) {
            self.check_writable()?;
        }
        let file = self.node(node)?;
        let stat = fstat(&file)?;
        let opened = self.reopen(&file, &stat, flags)?;
        Ok(self.handles().insert(opened))
    }

    pub(crate) fn open_directory(&self, node: u64) -> Result<u64> {
        let file = self.node(node)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | ALWAYS;
        let opened = self.through_descriptor(&file, |directory, name| openat(directory, name, flags, Mode::empty()))?;
        Ok(self.handles().insert(opened))
    }

    /// Makes a file and opens it. One that is there is opened, if the guest did not insist.
    pub(crate) fn create(&self, parent: u64, name: &OsStr, mode: u32, flags: i32) -> Result<(FileAttr, u64)> {
        self.check_writable()?;
        let directory = self.node(parent)?;
        let insists = OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::EXCL);
        let flags = open_flags(flags);
        let new = flags | ALWAYS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(mode & 0o777);
        match openat2(&directory, checked(name)?, new, mode, RESOLVE) {
            Ok(opened) => {
                // The same file once more, whatever the name means by now.
                let path = OFlags::PATH | OFlags::CLOEXEC;
                let file = self.through_descriptor(&opened, |descriptors, number| {
                    openat(descriptors, number, path, Mode::empty())
                })?;
                let attributes = self.tell(file)?;
                Ok((attributes, self.handles().insert(opened)))
            }
            Err(Errno::EXIST) if !insists => {
                let attributes = self.lookup(parent, name)?;
                let opened = self.open(attributes.ino.0, flags.bits().cast_signed());
                if opened.is_err() {
                    // The guest hears of an error, and not of the file.
                    self.forget(attributes.ino.0, 1);
                }
                Ok((attributes, opened?))
            }
            Err(error) => Err(error),
        }
    }

    /// Fills as much of `buffer` as the file has.
    pub(crate) fn read<'a>(&self, handle: u64, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let file = self.handle(handle)?;
        let mut filled = 0;
        while filled < buffer.len() {
            match pread(&file, &mut buffer[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(&buffer[..filled])
    }

    /// Writes as much as there is room for, and says how much that was.
    pub(crate) fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<usize> {
        let file = self.handle(handle)?;
        let mut written = 0;
        while written < data.len() {
            match pwrite(&file, &data[written..], offset.saturating_add(written as u64)) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    pub(crate) fn sync(&self, handle: u64, data_only: bool) -> Result<()> {
        let file = self.handle(handle)?;
        if data_only { fdatasync(file) } else { fsync(file) }
    }

    pub(crate) fn allocate(&self, handle: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        self.check_writable()?;
        let mode = FallocateFlags::from_bits(mode.cast_unsigned()).ok_or(Errno::OPNOTSUPP)?;
        fallocate(self.handle(handle)?, mode, offset, length)
    }

    pub(crate) fn seek(&self, handle: u64, to: SeekFrom) -> Result<u64> {
        seek(self.handle(handle)?, to)
    }

    pub(crate) fn close(&self, handle: u64) {
        self.handles().remove(handle);
    }

    pub(crate) fn statistics(&self, node: u64) -> Result<StatVfs> {
        fstatvfs(self.node(node)?)
    }

    /// What is open as `handle`.
    pub(crate) fn handle(&self, handle: u64) -> Result<Arc<OwnedFd>> {
        self.handles().get(handle)
    }

    fn node(&self, node: u64) -> Result<Arc<OwnedFd>> {
        self.nodes().get(node)
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writable(&self) -> Result<()> {
        match self.export.access {
            Access::Write => Ok(()),
            Access::Read => Err(Errno::ROFS),
        }
    }

    /// Adds an entry to a directory, and tells the guest of what is there then.
    fn add(&self, parent: u64, name: &OsStr, make: impl FnOnce(&OwnedFd) -> Result<()>) -> Result<FileAttr> {
        self.check_writable()?;
        let directory = self.node(parent)?;
        checked(name)?;
        make(&directory)?;
        self.tell(find(&directory, name)?)
    }

    /// The guest is told of a file.
    fn tell(&self, file: OwnedFd) -> Result<FileAttr> {
        let stat = fstat(&file)?;
        let node = self.nodes().tell(file, &stat);
        Ok(self.export.owner.attributes(node, &stat))
    }

    /// Opens a regular file that is known: nothing else is read or written by who serves.
    fn reopen(&self, file: &OwnedFd, stat: &Stat, flags: OFlags) -> Result<OwnedFd> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        self.through_descriptor(file, |directory, name| {
            openat(directory, name, flags | ALWAYS, Mode::empty())
        })
    }

    /// Does what takes a path to the file behind a descriptor.
    fn through_descriptor<T>(&self, file: &OwnedFd, act: impl FnOnce(&OwnedFd, &str) -> Result<T>) -> Result<T> {
        act(&self.export.descriptors, &file.as_raw_fd().to_string())
    }
}

/// Opens the entry `name`, whatever it is, without touching it.
fn find(directory: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(directory, checked(name)?, flags, Mode::empty(), RESOLVE)
}

/// A name of an entry: not a way through the tree.
fn checked(name: &OsStr) -> Result<&OsStr> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags.cast_unsigned()) & OPEN_FLAGS
}
