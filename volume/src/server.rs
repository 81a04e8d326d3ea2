//! The FUSE requests, and the life of a server.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use rustix::net::sockopt;

use crate::attributes::timespec;
use crate::export::Export;
use crate::files::{Change, Files};

/// Bytes of a file in one request or answer at most: with its header it is one message of a Unix socket, whose largest the
/// host's `net.core.wmem_max` sets (212,992 bytes unless changed).
const MAX_DATA: u32 = 128 << 10;

/// How long a guest may believe what it was told of names and attributes: not at all, since the host changes them too.
const TTL: Duration = Duration::ZERO;

/// Why a server ends.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory cannot be served.
    #[error("cannot open the directory of a volume")]
    Open(#[source] io::Error),
    /// The socket has ended, or its other end does not speak FUSE.
    #[error("the guest's requests for a volume have ended")]
    Session(#[source] io::Error),
}

/// Serves `export` on `socket`, a connected socket of type `SOCK_SEQPACKET`, until its other end is gone or breaks the
/// protocol. A guest that unmounts may mount anew.
///
/// # Errors
/// How it ended.
pub fn serve(socket: &OwnedFd, export: &Export) -> Result<std::convert::Infallible, ServeError> {
    // Where the host allows less, the largest messages fail and the others do not.
    let _ = sockopt::set_socket_send_buffer_size(socket, 2 * MAX_DATA as usize);
    // The guest's umask has been applied by the guest.
    rustix::process::umask(rustix::fs::Mode::empty());
    loop {
        let files = Files::new(export).map_err(|errno| ServeError::Open(errno.into()))?;
        let socket = socket.try_clone().map_err(ServeError::Session)?;
        let session = Session::from_fd(Server(files), socket, SessionACL::All, Config::default());
        session.and_then(Session::run).map_err(ServeError::Session)?;
    }
}

/// [`Files`] as `fuser` asks for them. What is not here is answered with `ENOSYS`: extended attributes, locks, which the
/// guest keeps by itself then, and ioctls.
#[derive(Debug)]
struct Server(Files);

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn reply_entry(reply: ReplyEntry, found: Result<FileAttr, rustix::io::Errno>) {
    match found {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_attributes(reply: ReplyAttr, found: Result<FileAttr, rustix::io::Errno>) {
    match found {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_done(reply: ReplyEmpty, done: Result<(), rustix::io::Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_opened(reply: ReplyOpen, opened: Result<u64, rustix::io::Errno>) {
    match opened {
        Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for Server {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel does not offer it does not need.
        let _ = config.set_max_write(MAX_DATA);
        let _ = config.set_max_readahead(MAX_DATA);
        let _ = config.add_capabilities(InitFlags::FUSE_AUTO_INVAL_DATA);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, self.0.lookup(parent.0, name));
    }

    fn forget(&self, _request: &Request, node: INodeNo, times: u64) {
        self.0.forget(node.0, times);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        reply_attributes(reply, self.0.attributes(node.0, handle.map(|handle| handle.0)));
    }

    fn setattr(
        &self,
        _request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let omitted = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        let times = (atime.is_some() || mtime.is_some()).then(|| Timestamps {
            last_access: atime.map_or(omitted, timespec),
            last_modification: mtime.map_or(omitted, timespec),
        });
        let change = Change {
            mode,
            uid,
            gid,
            size,
            times,
        };
        reply_attributes(reply, self.0.change(node.0, handle.map(|handle| handle.0), &change));
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        match self.0.read_link(node.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply_entry(reply, self.0.make_node(parent.0, name, mode & !(umask & 0o777)));
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        reply_entry(reply, self.0.make_directory(parent.0, name, mode & !umask));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_done(reply, self.0.remove(parent.0, name, AtFlags::empty()));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_done(reply, self.0.remove(parent.0, name, AtFlags::REMOVEDIR));
    }

    fn symlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        reply_entry(reply, self.0.make_symlink(parent.0, name, target));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.0.rename((parent.0, name), (new_parent.0, new_name), flags.bits());
        reply_done(reply, renamed);
    }

    fn link(&self, _request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, self.0.make_link(node.0, parent.0, name));
    }

    fn open(&self, _request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply_opened(reply, self.0.open(node.0, flags.0));
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size.min(MAX_DATA) as usize];
        match self.0.read(handle.0, offset, &mut buffer) {
            Ok(data) => reply.data(data),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(handle.0, offset, data) {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.close(handle.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _node: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        reply_done(reply, self.0.sync(handle.0, data_only));
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply_opened(reply, self.0.open_directory(node.0));
    }

    fn readdir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.0.list(handle.0, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.0.close(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        reply_done(reply, self.0.sync(handle.0, data_only));
    }

    fn statfs(&self, _request: &Request, node: INodeNo, reply: ReplyStatfs) {
        match self.0.statistics(node.0) {
            Ok(found) => reply.statfs(
                found.f_blocks,
                found.f_bfree,
                found.f_bavail,
                found.f_files,
                found.f_ffree,
                u32::try_from(found.f_bsize).unwrap_or(4096),
                u32::try_from(found.f_namemax).unwrap_or(255),
                u32::try_from(found.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.0.create(parent.0, name, mode & !umask, flags) {
            Ok((attributes, handle)) => {
                reply.created(
                    &TTL,
                    &attributes,
                    Generation(0),
                    FileHandle(handle),
                    FopenFlags::empty(),
                );
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_done(reply, self.0.allocate(handle.0, offset, length, mode));
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let to = match (u64::try_from(offset), whence) {
            (Ok(offset), libc::SEEK_DATA) => SeekFrom::Data(offset),
            (Ok(offset), libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            // The guest's kernel does the others itself.
            _ => return reply.error(Errno::EINVAL),
        };
        match self.0.seek(handle.0, to) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }
}
