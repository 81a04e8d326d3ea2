//! File attributes, from the kernel and to it.

use std::os::fd::AsFd;

use msb_protocol::sftp::FileAttributes;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// What a client may change of a mode: permissions, set-id and sticky bits.
const PERMISSION_BITS: u32 = 0o7777;

/// The mode for a file that is made.
pub(super) fn mode_or(attributes: &FileAttributes, default: u32) -> Mode {
    permission_bits(attributes.permissions.unwrap_or(default))
}

/// Changes what is there of the file behind `path`.
pub(super) fn apply_to_path(attributes: &FileAttributes, path: &[u8], follow: AtFlags) -> Result<(), Errno> {
    if let Some(size) = attributes.size {
        if follow.contains(AtFlags::SYMLINK_NOFOLLOW) {
            return Err(Errno::INVAL);
        }
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::ftruncate(rustix::fs::open(path, flags, Mode::empty())?, size)?;
    }
    if let Some(permissions) = attributes.permissions {
        rustix::fs::chmodat(CWD, path, permission_bits(permissions), follow)?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), follow)?;
    }
    if let Some((user, group)) = attributes.owner {
        rustix::fs::chownat(CWD, path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), follow)?;
    }
    Ok(())
}

/// Changes what is there of an open file.
pub(super) fn apply_to_file(attributes: &FileAttributes, file: impl AsFd) -> Result<(), Errno> {
    if let Some(size) = attributes.size {
        rustix::fs::ftruncate(&file, size)?;
    }
    if let Some(permissions) = attributes.permissions {
        rustix::fs::fchmod(&file, permission_bits(permissions))?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::futimens(&file, &timestamps(times))?;
    }
    if let Some((user, group)) = attributes.owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    Ok(())
}

/// What the kernel says of a file.
pub(super) fn of(stat: &Stat) -> FileAttributes {
    // The protocol's times end in 2106.
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    FileAttributes {
        size: Some(stat.st_size.cast_unsigned()),
        owner: Some((stat.st_uid, stat.st_gid)),
        permissions: Some(stat.st_mode),
        times: Some((seconds(stat.st_atime), seconds(stat.st_mtime))),
    }
}

fn permission_bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSION_BITS)
}

fn timestamps((accessed, modified): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time(accessed),
        last_modification: time(modified),
    }
}
