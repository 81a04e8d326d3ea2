//! The file systems of a running guest, and letting go of its disks at the end.

use std::ffi::CString;
use std::io;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{degraded, open_terminal};

/// A file system that nothing works without could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {kind} on {target}")]
pub struct MountError {
    kind: &'static str,
    target: &'static str,
    source: io::Error,
}

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
    required: bool,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DATA: MountFlags = SAFE.union(MountFlags::NOEXEC);

const fn mount(kind: &'static str, target: &'static str, flags: MountFlags, data: &'static str) -> Mount {
    Mount {
        kind,
        target,
        flags,
        data,
        required: false,
    }
}

const fn required(kind: &'static str, target: &'static str, flags: MountFlags, data: &'static str) -> Mount {
    Mount {
        kind,
        target,
        flags,
        data,
        required: true,
    }
}

/// In mounting order. Group 5 is `tty` in every distribution.
const MOUNTS: [Mount; 8] = [
    required("devtmpfs", "/dev", MountFlags::NOSUID, "mode=755"),
    required("proc", "/proc", DATA, ""),
    required(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        "gid=5,mode=620,ptmxmode=666",
    ),
    mount("sysfs", "/sys", DATA, ""),
    mount("tmpfs", "/dev/shm", SAFE, "mode=1777"),
    mount("tmpfs", "/run", SAFE, "mode=755"),
    mount("tmpfs", "/tmp", SAFE, "mode=1777"),
    mount("cgroup2", "/sys/fs/cgroup", DATA, ""),
];

/// Names that programs expect in `/dev` and no kernel makes.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what the kernel has not mounted by itself, and takes the console for standard input and output.
pub(super) fn mount_all() -> Result<(), MountError> {
    for entry in &MOUNTS {
        match entry.mount() {
            Ok(()) => {}
            Err(source) if entry.required => {
                return Err(MountError {
                    kind: entry.kind,
                    target: entry.target,
                    source,
                });
            }
            Err(error) => degraded(&format!("cannot mount {} on {}", entry.kind, entry.target), &error),
        }
        if entry.target == "/dev" {
            take_console();
        }
    }
    for (target, link) in LINKS {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

impl Mount {
    fn mount(&self) -> io::Result<()> {
        // Where the directory cannot be made, mounting says why.
        let _ = std::fs::create_dir(self.target);
        let data = CString::new(self.data).expect("the table holds no NUL");
        match rustix::mount::mount(self.kind, self.target, self.kind, self.flags, data.as_c_str()) {
            Ok(()) | Err(Errno::BUSY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn take_console() {
    if let Ok(console) = open_terminal("/dev/console") {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Unmounts what came from a disk, or makes it read-only where it is still in use.
pub(super) fn release_disks() {
    let mounts = std::fs::read("/proc/self/mounts").unwrap_or_default();
    for target in disk_mounts(&mounts).into_iter().rev() {
        if rustix::mount::unmount(target.as_slice(), UnmountFlags::empty()).is_ok() {
            continue;
        }
        if let Err(error) = rustix::mount::mount_remount(target.as_slice(), MountFlags::RDONLY, "") {
            degraded(&format!("cannot release {}", String::from_utf8_lossy(&target)), &error);
        }
    }
}

/// The mount points in a table of `/proc/self/mounts` whose source is a device, in mounting order.
fn disk_mounts(table: &[u8]) -> Vec<Vec<u8>> {
    let lines = table.split(|&byte| byte == b'\n');
    let fields = lines.map(|line| line.split(|&byte| byte == b' '));
    fields
        .filter_map(|mut fields| {
            let (source, target) = (fields.next()?, fields.next()?);
            source.starts_with(b"/dev/").then(|| unescape(target))
        })
        .collect()
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                path.push(escaped);
                rest = &after[3..];
            }
            _ => {
                path.push(byte);
                rest = after;
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_are_released_and_their_paths_are_exact() {
        let table = b"proc /proc proc rw 0 0\n/dev/vda /data\\040dir ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n\
            /dev/vdb /data\\040dir/a\\134b erofs ro 0 0\n";
        assert_eq!(disk_mounts(table), [b"/data dir".to_vec(), b"/data dir/a\\b".to_vec()]);
    }

    #[test]
    fn dev_comes_before_what_is_mounted_in_it() {
        let position = |target| MOUNTS.iter().position(|mount| mount.target == target).unwrap();
        assert!(position("/dev") < position("/dev/pts") && position("/sys") < position("/sys/fs/cgroup"));
    }
}
