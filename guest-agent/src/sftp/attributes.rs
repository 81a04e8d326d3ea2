//! File attributes, from the kernel and to it.

use std::os::fd::AsFd;

use msb_protocol::sftp::attribute;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

/// What a client may change of a mode: permissions, set-id and sticky bits.
const PERMISSION_BITS: u32 = 0o7777;

/// Attributes as they travel; what is absent is unknown, or not to be changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// User and group id.
    pub(super) owner: Option<(u32, u32)>,
    /// The mode, with the file type where it comes from the kernel.
    pub(super) permissions: Option<u32>,
    /// Access and modification, in seconds since the epoch.
    pub(super) times: Option<(u32, u32)>,
}

impl Attributes {
    /// Which attributes are there.
    pub(super) fn flags(&self) -> u32 {
        let flag = |present, flag| if present { flag } else { 0 };
        flag(self.size.is_some(), attribute::SIZE)
            | flag(self.owner.is_some(), attribute::OWNER)
            | flag(self.permissions.is_some(), attribute::PERMISSIONS)
            | flag(self.times.is_some(), attribute::TIMES)
    }

    /// The mode for a file that is made.
    pub(super) fn mode_or(&self, default: u32) -> Mode {
        permission_bits(self.permissions.unwrap_or(default))
    }

    /// Changes what is there of the file behind `path`.
    pub(super) fn apply_to_path(&self, path: &[u8], follow: AtFlags) -> Result<(), Errno> {
        if let Some(size) = self.size {
            if follow.contains(AtFlags::SYMLINK_NOFOLLOW) {
                return Err(Errno::INVAL);
            }
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
            rustix::fs::ftruncate(rustix::fs::open(path, flags, Mode::empty())?, size)?;
        }
        if let Some(permissions) = self.permissions {
            rustix::fs::chmodat(CWD, path, permission_bits(permissions), follow)?;
        }
        if let Some(times) = self.times {
            rustix::fs::utimensat(CWD, path, &timestamps(times), follow)?;
        }
        if let Some((user, group)) = self.owner {
            rustix::fs::chownat(CWD, path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), follow)?;
        }
        Ok(())
    }

    /// Changes what is there of an open file.
    pub(super) fn apply_to_file(&self, file: impl AsFd) -> Result<(), Errno> {
        if let Some(size) = self.size {
            rustix::fs::ftruncate(&file, size)?;
        }
        if let Some(permissions) = self.permissions {
            rustix::fs::fchmod(&file, permission_bits(permissions))?;
        }
        if let Some(times) = self.times {
            rustix::fs::futimens(&file, &timestamps(times))?;
        }
        if let Some((user, group)) = self.owner {
            rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        Ok(())
    }
}

impl From<&Stat> for Attributes {
    fn from(stat: &Stat) -> Self {
        // The protocol's times end in 2106.
        let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
        Self {
            size: Some(stat.st_size.cast_unsigned()),
            owner: Some((stat.st_uid, stat.st_gid)),
            permissions: Some(stat.st_mode),
            times: Some((seconds(stat.st_atime), seconds(stat.st_mtime))),
        }
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
