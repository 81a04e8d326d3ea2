//! Answers requests.

use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use msb_protocol::sftp::{FileAttributes, open};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::codec::{self, Operation, Reply, Request};
use super::extensions;
use super::handles::{Handles, Open};
use super::status::Status;
use super::{MAX_DATA, attributes, listing, paths};
use crate::users::Names;

/// Names in one reply, so that no directory makes it large.
const MAX_NAMES: usize = 128;
const MAX_NAMES_BYTES: usize = 64 << 10;

/// The state of one client.
#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) handles: Handles,
    /// Read when the first directory is listed.
    names: Option<Names>,
}

impl Server {
    /// Appends exactly one reply.
    pub(super) fn answer(&mut self, request: Request<'_>, replies: &mut Vec<u8>) {
        match request {
            Request::Init => codec::version(replies, &extensions::ADVERTISED),
            Request::Numbered { id, operation } => self.perform(id, operation, Reply::new(replies, id)),
        }
    }

    fn perform(&mut self, id: u32, operation: Operation<'_>, reply: Reply<'_>) {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        match operation {
            Operation::Open {
                path,
                flags,
                attributes,
            } => match self.open(path, flags, &attributes) {
                Ok(handle) => reply.handle(&handle),
                Err(status) => reply.status(&status),
            },
            Operation::OpenDir { path } => match self.open_directory(path) {
                Ok(handle) => reply.handle(&handle),
                Err(status) => reply.status(&status),
            },
            Operation::Read { handle, offset, length } => self.read(handle, offset, length, reply),
            Operation::ReadDir { handle } => self.read_directory(id, handle, reply),
            Operation::Lstat { path } => stat_reply(at(path, no_follow), reply),
            Operation::Stat { path } => stat_reply(at(path, AtFlags::empty()), reply),
            Operation::Fstat { handle } => stat_reply(self.stat_handle(handle), reply),
            Operation::RealPath { path } => match paths::canonical(paths::path(path)) {
                Ok(path) => reply.name(&path),
                Err(error) => reply.status(&error.into()),
            },
            Operation::ReadLink { path } => match rustix::fs::readlink(paths::path(path), Vec::new()) {
                Ok(target) => reply.name(target.as_bytes()),
                Err(error) => reply.status(&error.into()),
            },
            Operation::Extended { name, fields } => extensions::perform(self, name, fields, reply),
            other => reply.status(&Status::from(self.change(other))),
        }
    }

    /// The operations that only succeed or fail.
    fn change(&mut self, operation: Operation<'_>) -> Result<(), Status> {
        match operation {
            Operation::Close { handle } => self.handles.close(handle)?,
            Operation::Write { handle, offset, data } => self.write(handle, offset, data)?,
            Operation::SetStat { path, attributes } => {
                attributes::apply_to_path(&attributes, paths::path(path).as_os_str().as_bytes(), AtFlags::empty())?;
            }
            Operation::FsetStat { handle, attributes } => match self.handles.get(handle)? {
                Open::File { file, .. } => attributes::apply_to_file(&attributes, file)?,
                Open::Directory(directory) => attributes::apply_to_file(&attributes, directory.fd()?)?,
            },
            Operation::Remove { path } => rustix::fs::unlink(path)?,
            Operation::MakeDir { path, attributes } => {
                rustix::fs::mkdir(path, attributes::mode_or(&attributes, 0o777))?
            }
            Operation::RemoveDir { path } => rustix::fs::rmdir(path)?,
            Operation::Rename { from, to } => rename(from, to)?,
            Operation::Symlink { target, link } => rustix::fs::symlink(target, link)?,
            _ => return Err(Status::UNSUPPORTED),
        }
        Ok(())
    }

    fn open(&mut self, path: &[u8], flags: u32, attributes: &FileAttributes) -> Result<[u8; 8], Status> {
        if self.handles.is_full() {
            return Err(Status::TOO_MANY_HANDLES);
        }
        let file = rustix::fs::open(
            paths::path(path),
            open_flags(flags)?,
            attributes::mode_or(attributes, 0o666),
        )?;
        let append = flags & open::APPEND != 0;
        self.handles.insert(Open::File { file, append })
    }

    fn open_directory(&mut self, path: &[u8]) -> Result<[u8; 8], Status> {
        if self.handles.is_full() {
            return Err(Status::TOO_MANY_HANDLES);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(paths::path(path), flags, Mode::empty())?;
        self.handles.insert(Open::Directory(Dir::new(directory)?))
    }

    fn read(&mut self, handle: &[u8], offset: u64, length: u32, reply: Reply<'_>) {
        let limit = usize::try_from(length).map_or(MAX_DATA, |length| length.min(MAX_DATA));
        let file = match self.handles.file(handle) {
            Ok((file, _)) => file,
            Err(status) => return reply.status(&status),
        };
        reply.data(limit, |buffer| match rustix::io::pread(file, buffer, offset)? {
            0 if limit > 0 => Err(Status::EOF),
            read => Ok(read),
        });
    }

    fn write(&mut self, handle: &[u8], offset: u64, data: &[u8]) -> Result<(), Status> {
        let (file, append) = self.handles.file(handle)?;
        let mut written = 0;
        while written < data.len() {
            let rest = &data[written..];
            let count = if append {
                rustix::io::write(file, rest)
            } else {
                // The length is bounded by the packet.
                rustix::io::pwrite(
                    file,
                    rest,
                    offset.saturating_add(u64::try_from(written).unwrap_or(u64::MAX)),
                )
            };
            match count {
                Ok(0) => return Err(Status::FAILURE),
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn stat_handle(&mut self, handle: &[u8]) -> Result<Stat, Status> {
        Ok(match self.handles.get(handle)? {
            Open::File { file, .. } => rustix::fs::fstat(file)?,
            Open::Directory(directory) => directory.stat()?,
        })
    }

    fn read_directory(&mut self, id: u32, handle: &[u8], reply: Reply<'_>) {
        let directory = match self.handles.directory(handle) {
            Ok(directory) => directory,
            Err(status) => return reply.status(&status),
        };
        let users = self.names.get_or_insert_with(Names::read);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs().cast_signed());
        let mut names = reply.names();
        let mut count = 0;
        while count < MAX_NAMES && names.len() < MAX_NAMES_BYTES {
            let name = match directory.read() {
                Some(Ok(entry)) => entry.file_name().to_bytes().to_vec(),
                Some(Err(error)) if count == 0 => return names.into_status(id, &error.into()),
                Some(Err(_)) => break,
                None if count == 0 => return names.into_status(id, &Status::EOF),
                None => break,
            };
            // A file that went away meanwhile is not listed.
            let Ok(stat) = directory
                .fd()
                .and_then(|fd| rustix::fs::statat(fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW))
            else {
                continue;
            };
            names.add(&name, &listing::line(&name, &stat, users, now), &attributes::of(&stat));
            count += 1;
        }
    }

    /// Names of users and groups.
    pub(super) fn names(&mut self) -> &Names {
        self.names.get_or_insert_with(Names::read)
    }
}

fn stat_reply(stat: Result<Stat, Status>, reply: Reply<'_>) {
    match stat {
        Ok(stat) => reply.attributes(&attributes::of(&stat)),
        Err(status) => reply.status(&status),
    }
}

fn at(path: &[u8], flags: AtFlags) -> Result<Stat, Status> {
    Ok(rustix::fs::statat(CWD, paths::path(path), flags)?)
}

/// Never waits on a FIFO and never takes a terminal.
fn open_flags(flags: u32) -> Result<OFlags, Status> {
    let access = match flags & (open::READ | open::WRITE) {
        open::READ => OFlags::RDONLY,
        open::WRITE => OFlags::WRONLY,
        0 => return Err(Status::BAD_MESSAGE),
        _ => OFlags::RDWR,
    };
    let mut open = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    open.set(OFlags::APPEND, flags & open::APPEND != 0);
    open.set(OFlags::CREATE, flags & open::CREATE != 0);
    open.set(OFlags::TRUNC, flags & open::TRUNCATE != 0);
    open.set(OFlags::EXCL, flags & open::EXCLUSIVE != 0);
    Ok(open)
}

/// Version 3 never replaces a file; `posix-rename@openssh.com` does.
fn rename(from: &[u8], to: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do it in one step.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let source = rustix::fs::lstat(from)?;
            if FileType::from_raw_mode(source.st_mode) == FileType::RegularFile {
                rustix::fs::link(from, to)?;
                return rustix::fs::unlink(from);
            }
            match rustix::fs::lstat(to) {
                Err(Errno::NOENT) => rustix::fs::rename(from, to),
                Err(error) => Err(error),
                Ok(_) => Err(Errno::EXIST),
            }
        }
        result => result,
    }
}
