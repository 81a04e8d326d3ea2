//! The extensions of OpenSSH's sftp-server (PROTOCOL, section 4) that are served.

use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, StatVfs, StatVfsMountFlags};
use rustix::io::Errno;

use super::codec::{Fields, Reply, Truncated};
use super::handles::{MAX_HANDLES, Open};
use super::server::Server;
use super::status::Status;
use super::{MAX_DATA, MAX_PACKET, attributes, paths};

/// Names and versions, as the greeting lists them.
pub(super) const ADVERTISED: [(&str, &str); 11] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("copy-data", "1"),
    ("home-directory", "1"),
    ("users-groups-by-id@openssh.com", "1"),
];

/// How much `copy-data` moves at once, in bytes.
const COPY_CHUNK: usize = 128 << 10;

const STATVFS_READ_ONLY: u64 = 1;
const STATVFS_NO_SETUID: u64 = 2;

/// Why an extended request has no reply of its own.
enum Refusal {
    Status(Status),
    Malformed,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Status(error.into())
    }
}

impl From<Truncated> for Refusal {
    fn from(_: Truncated) -> Self {
        Self::Malformed
    }
}

/// What an extended request is answered with.
enum Outcome {
    Done,
    Name(Vec<u8>),
    FileSystem(StatVfs),
    Limits,
    Names(Vec<u8>, Vec<u8>),
}

/// Answers one extended request.
pub(super) fn perform(server: &mut Server, name: &[u8], fields: Fields<'_>, reply: Reply<'_>) {
    match outcome(server, name, fields) {
        Ok(Outcome::Done) => reply.status(&Status::OK),
        Ok(Outcome::Name(name)) => reply.name(&name),
        Ok(Outcome::FileSystem(stat)) => file_system_reply(&stat, reply),
        Ok(Outcome::Limits) => limits_reply(reply),
        Ok(Outcome::Names(users, groups)) => {
            let mut packet = reply.extended();
            packet.string(&users);
            packet.string(&groups);
        }
        Err(Refusal::Status(status)) => reply.status(&status),
        Err(Refusal::Malformed) => reply.status(&Status::BAD_MESSAGE),
    }
}

fn outcome(server: &mut Server, name: &[u8], mut fields: Fields<'_>) -> Result<Outcome, Refusal> {
    match name {
        b"posix-rename@openssh.com" => rustix::fs::rename(fields.string()?, fields.string()?)?,
        b"hardlink@openssh.com" => rustix::fs::link(fields.string()?, fields.string()?)?,
        b"fsync@openssh.com" => rustix::fs::fsync(server.handles.file(fields.string()?)?.0)?,
        b"lsetstat@openssh.com" => {
            let path = paths::path(fields.string()?).as_os_str().as_bytes();
            attributes::apply_to_path(&fields.attributes()?, path, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        b"copy-data" => copy(server, fields)?,
        b"statvfs@openssh.com" => {
            return Ok(Outcome::FileSystem(rustix::fs::statvfs(paths::path(fields.string()?))?));
        }
        b"fstatvfs@openssh.com" => {
            let stat = match server.handles.get(fields.string()?)? {
                Open::File { file, .. } => rustix::fs::fstatvfs(file)?,
                Open::Directory(directory) => directory.statvfs()?,
            };
            return Ok(Outcome::FileSystem(stat));
        }
        b"limits@openssh.com" => return Ok(Outcome::Limits),
        b"expand-path@openssh.com" => {
            return Ok(Outcome::Name(paths::canonical(&paths::expand(fields.string()?)?)?));
        }
        b"home-directory" => {
            let home = paths::home(fields.string()?)?;
            return Ok(Outcome::Name(home.into_os_string().into_encoded_bytes()));
        }
        b"users-groups-by-id@openssh.com" => {
            let (users, groups) = (fields.string()?, fields.string()?);
            let names = server.names();
            let users = name_list(users, |id| names.user(id));
            let groups = name_list(groups, |id| names.group(id));
            return Ok(Outcome::Names(users, groups));
        }
        _ => return Err(Status::UNSUPPORTED.into()),
    }
    Ok(Outcome::Done)
}

/// One string for each id; an id without a name has an empty one.
fn name_list<'a>(ids: &[u8], name: impl Fn(u32) -> Option<&'a str>) -> Vec<u8> {
    let mut list = Vec::new();
    for id in Fields::numbers(ids) {
        let name = name(id).unwrap_or("").as_bytes();
        let length = u32::try_from(name.len()).expect("names come from a bounded file");
        list.extend(length.to_be_bytes());
        list.extend(name);
        // Many ids with long names could outgrow any packet.
        if list.len() > MAX_PACKET / 2 {
            break;
        }
    }
    list
}

/// Copies inside the guest. A length of zero means up to the end.
fn copy(server: &mut Server, mut fields: Fields<'_>) -> Result<(), Refusal> {
    let (from, mut read_at, length) = (fields.string()?, fields.u64()?, fields.u64()?);
    let (to, mut write_at) = (fields.string()?, fields.u64()?);
    if from == to {
        return Err(Status::FAILURE.into());
    }
    let source = server.handles.file(from)?.0.try_clone().map_err(Status::from)?;
    let (target, _) = server.handles.file(to)?;
    let mut remaining = if length == 0 { u64::MAX } else { length };
    let mut buffer = vec![0; COPY_CHUNK];
    while remaining > 0 {
        let want = usize::try_from(remaining).map_or(COPY_CHUNK, |remaining| remaining.min(COPY_CHUNK));
        let read = rustix::io::pread(&source, &mut buffer[..want], read_at)?;
        if read == 0 {
            // A given length that is not there is an error.
            return if length == 0 { Ok(()) } else { Err(Status::EOF.into()) };
        }
        let mut written = 0;
        while written < read {
            let count = rustix::io::pwrite(target, &buffer[written..read], write_at)?;
            written += count;
            write_at = write_at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        read_at = read_at.saturating_add(read);
        remaining -= read;
    }
    Ok(())
}

fn file_system_reply(stat: &StatVfs, reply: Reply<'_>) {
    let flag = |flag, value| if stat.f_flag.contains(flag) { value } else { 0 };
    let flags = flag(StatVfsMountFlags::RDONLY, STATVFS_READ_ONLY) | flag(StatVfsMountFlags::NOSUID, STATVFS_NO_SETUID);
    let mut packet = reply.extended();
    for value in [stat.f_bsize, stat.f_frsize, stat.f_blocks, stat.f_bfree, stat.f_bavail] {
        packet.u64(value);
    }
    for value in [
        stat.f_files,
        stat.f_ffree,
        stat.f_favail,
        stat.f_fsid,
        flags,
        stat.f_namemax,
    ] {
        packet.u64(value);
    }
}

fn limits_reply(reply: Reply<'_>) {
    let mut packet = reply.extended();
    for limit in [MAX_PACKET, MAX_DATA, MAX_DATA, MAX_HANDLES] {
        packet.u64(u64::try_from(limit).expect("limits are small"));
    }
}
