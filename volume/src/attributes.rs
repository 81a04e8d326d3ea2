//! What a guest sees of a file: its owner is the guest's root, if it is who serves it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::{Stat, Timespec, UTIME_NOW};

/// Whose a file is that is nobody's of the guest's: the kernel's overflow id.
const NOBODY: u32 = 65534;

/// Who serves, and is root to the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The user and group of this process.
    pub(crate) fn of_process() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    /// Whether a guest that gives the file behind `stat` to these changes nothing.
    pub(crate) fn has_already(self, stat: &Stat, uid: Option<u32>, gid: Option<u32>) -> bool {
        uid.is_none_or(|uid| uid == seen(stat.st_uid, self.uid))
            && gid.is_none_or(|gid| gid == seen(stat.st_gid, self.gid))
    }

    /// The attributes of the file behind `stat`, as node `node`.
    pub(crate) fn attributes(self, node: u64, stat: &Stat) -> FileAttr {
        FileAttr {
            ino: INodeNo(node),
            size: unsigned(stat.st_size),
            blocks: unsigned(stat.st_blocks),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            crtime: UNIX_EPOCH,
            kind: kind(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
            perm: u16::try_from(stat.st_mode & 0o7777).expect("12 bits fit into 16"),
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: seen(stat.st_uid, self.uid),
            gid: seen(stat.st_gid, self.gid),
            // Nodes of devices lead nowhere in a guest, which mounts volumes without them.
            rdev: 0,
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            flags: 0,
        }
    }
}

fn seen(id: u32, server: u32) -> u32 {
    if id == server { 0 } else { NOBODY }
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The kind of an entry; what the host does not tell is looked up by the guest before it matters.
pub(crate) fn kind(of: rustix::fs::FileType) -> FileType {
    match of {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        rustix::fs::FileType::RegularFile | rustix::fs::FileType::Unknown => FileType::RegularFile,
    }
}

/// A file system may hold any number of seconds; what no clock can tell is the epoch.
fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let fraction = Duration::from_nanos(nanoseconds.min(999_999_999));
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = match seconds {
        0.. => UNIX_EPOCH.checked_add(whole),
        _ => UNIX_EPOCH.checked_sub(whole),
    };
    base.and_then(|base| base.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

/// As utimensat(2) takes it. `fuser` subtracts the fraction of a time before the epoch that it should add: so does this.
pub(crate) fn timespec(time: TimeOrNow) -> Timespec {
    let time = match time {
        TimeOrNow::Now => {
            return Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_NOW,
            };
        }
        TimeOrNow::SpecificTime(time) => time,
    };
    let (seconds, nanoseconds) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            (seconds, before.subsec_nanos())
        }
    };
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_on_both_sides_of_the_epoch_are_told() {
        for (seconds, nanoseconds) in [(0, 0), (1_700_000_000, 999_999_999), (-1, 1), (-2, 0), (i64::MIN, 0)] {
            let told = time(seconds, nanoseconds);
            let whole = Duration::from_secs(seconds.unsigned_abs());
            let of_seconds = if seconds < 0 {
                UNIX_EPOCH - whole
            } else {
                UNIX_EPOCH + whole
            };
            assert_eq!(told, of_seconds + Duration::from_nanos(nanoseconds));
        }
    }
}
