//! What a VM's process may use of the host: a cgroup of its own (cgroups(7), version 2 only).
//!
//! It is made below the topmost cgroup that this process may manage: that of the whole host for root, a delegated one for
//! anybody else. The VM's process is put there before it does anything; its keeper stays outside and removes it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, access, major, minor};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// The directory of msb's cgroups.
const OURS: &str = "msb";

/// The controllers that are used where they can be had.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// The period of the CPU limit, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// How long killed processes may take to leave a cgroup.
const EMPTYING: Duration = Duration::from_secs(5);

/// How often that is asked.
const RECHECK: Duration = Duration::from_millis(5);

/// What a VM's process may use at most.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Limits {
    /// Memory with the guest's, in MiB.
    pub memory_mib: u32,
    /// CPU time, in percent of one CPU.
    pub cpu_percent: u32,
    /// Threads.
    pub tasks: u32,
    /// MiB a second read from each device that holds a disk, and as many written.
    pub io_mib: Option<u32>,
}

/// Why there is no cgroup with the limits.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host gives this user none to manage.
    #[error(
        "no cgroup (version 2) can be managed from here; run it as root, or with one delegated, for example by \
         `systemd-run --user --scope -p Delegate=yes msb ...`"
    )]
    NotDelegated,
    /// The cgroups above do not pass on the controller of a limit.
    #[error(
        "this host's cgroups do not limit that: there is no {}; let the controllers cpu, memory, pids and io into the \
         cgroups above",
        .0.display()
    )]
    NoController(PathBuf),
    /// The cgroup or a limit is refused.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// The file of the cgroup.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The directory cannot be made or removed.
    #[error("cannot {doing} the cgroup {}", path.display())]
    Directory {
        /// A verb.
        doing: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A disk is on something that has no limit.
    #[error("the input and output of the disk {} cannot be limited: it is on no block device", .0.display())]
    NoDevice(PathBuf),
    /// The disk cannot be examined.
    #[error("cannot examine the disk {}", path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A cgroup that holds its processes to [`Limits`].
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

/// Where the cgroup `name` is to be: below the topmost that this process may manage.
///
/// # Errors
/// When there is none.
pub fn place(name: &str) -> Result<PathBuf, CgroupError> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let own = own_cgroup(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    let (mount, own) = own.ok_or(CgroupError::NotDelegated)?;
    let mut above: Vec<_> = own.ancestors().take_while(|path| path.starts_with(&mount)).collect();
    above.reverse();
    let managed = above.into_iter().find(|path| is_managed(path));
    Ok(managed.ok_or(CgroupError::NotDelegated)?.join(OURS).join(name))
}

/// The mount point of version 2 and this process's cgroup as a directory, from mountinfo (proc(5)) and
/// `/proc/self/cgroup`.
fn own_cgroup(mountinfo: &str, cgroup: &str) -> Option<(PathBuf, PathBuf)> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, mount) = (fields.next()?, Path::new(fields.next()?));
        let inside = Path::new(own).strip_prefix(root).ok()?;
        let is_ours = file_system.starts_with("cgroup2 ");
        is_ours.then(|| (mount.to_owned(), mount.join(inside)))
    })
}

/// Whether this process may make cgroups there, let controllers into them, and move processes.
fn is_managed(path: &Path) -> bool {
    let may_write = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    may_write(path)
        && ["cgroup.procs", "cgroup.subtree_control"]
            .iter()
            .all(|file| may_write(&path.join(file)))
}

impl Cgroup {
    /// One that somebody made at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes the cgroup at `path`, which [`place`] named, for a VM with `disks`.
    ///
    /// # Errors
    /// When it or one of its limits cannot be had; nothing is left of it then.
    pub fn create(path: &Path, limits: &Limits, disks: &[&Path]) -> Result<Self, CgroupError> {
        remove(path)?;
        let directory = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| CgroupError::Directory { doing, path, source }
        };
        let ours = path.parent().unwrap_or(path);
        fs::create_dir_all(ours).map_err(directory("make", ours))?;
        for above in [ours.parent().unwrap_or(ours), ours] {
            for controller in CONTROLLERS {
                // Whether it is there, the limit that needs it tells.
                let _ = fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        fs::create_dir(path).map_err(directory("make", path))?;
        let cgroup = Self::at(path.to_owned());
        let limited = cgroup.limit(limits, disks);
        if limited.is_err() {
            // The refused limit is what to tell of.
            let _ = remove(path);
        }
        limited.map(|()| cgroup)
    }

    fn limit(&self, limits: &Limits, disks: &[&Path]) -> Result<(), CgroupError> {
        let quota = u64::from(limits.cpu_percent) * PERIOD_US / 100;
        self.write("memory.max", &(u64::from(limits.memory_mib) << 20).to_string())?;
        self.write("cpu.max", &format!("{quota} {PERIOD_US}"))?;
        self.write("pids.max", &limits.tasks.to_string())?;
        let Some(io_mib) = limits.io_mib else {
            return Ok(());
        };
        let bytes = u64::from(io_mib) << 20;
        for disk in disks {
            self.write("io.max", &format!("{} rbps={bytes} wbps={bytes}", device_of(disk)?))?;
        }
        Ok(())
    }

    /// Its directory, for a process to be made in it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open(&self) -> io::Result<fs::File> {
        fs::File::open(&self.path)
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self, process: Pid) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &process.as_raw_nonzero().to_string())
    }

    /// Whether the kernel killed a process in it, because it needed more memory than it may.
    pub fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let killed = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        killed.is_some_and(|count| count != "0")
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        match fs::OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CgroupError::NoController(path)),
            opened => opened
                .and_then(|mut file| file.write_all(value.as_bytes()))
                .map_err(|source| CgroupError::Write {
                    path,
                    value: value.into(),
                    source,
                }),
        }
    }
}

/// Removes a cgroup with the processes that are in it; it may be gone already.
///
/// # Errors
/// When a process does not leave it.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTYING;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                // Kernels before 5.14 cannot: what is in it has lost its keeper, and dies of that.
                let _ = fs::write(path.join("cgroup.kill"), "1");
                std::thread::sleep(RECHECK);
            }
            Err(source) => {
                return Err(CgroupError::Directory {
                    doing: "remove",
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}

/// `MAJOR:MINOR` of the block device that is `disk` or holds it.
fn device_of(disk: &Path) -> Result<String, CgroupError> {
    let failed = |source| CgroupError::Disk {
        path: disk.to_owned(),
        source,
    };
    let metadata = fs::metadata(disk).map_err(failed)?;
    let device = match metadata.file_type().is_block_device() {
        true => metadata.rdev(),
        false => metadata.dev(),
    };
    let sysfs = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    // A limit is one of a whole device.
    let whole = match sysfs.join("partition").exists() {
        true => sysfs.canonicalize().map_err(failed)?.join(".."),
        false => sysfs,
    };
    match fs::read_to_string(whole.join("dev")) {
        Ok(numbers) => Ok(numbers.trim_end().to_owned()),
        Err(_) => Err(CgroupError::NoDevice(disk.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                          32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw shared:7 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_cgroup_is_found_below_the_mount_of_version_2() {
        let found = own_cgroup(HYBRID, "1:cpu:/x\n0::/user.slice/a.scope\n");
        let mount = PathBuf::from("/sys/fs/cgroup/unified");
        assert_eq!(found, Some((mount.clone(), mount.join("user.slice/a.scope"))));
        assert_eq!(own_cgroup(HYBRID, "1:cpu:/x\n"), None);
        assert_eq!(own_cgroup("", "0::/\n"), None);
        // A container that sees a part of the hierarchy only.
        let part = "41 31 0:38 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = own_cgroup(part, "0::/docker/1/x\n").unwrap();
        assert_eq!(found.1, Path::new("/sys/fs/cgroup/x"));
        assert_eq!(own_cgroup(part, "0::/elsewhere\n"), None);
    }

    #[test]
    fn what_is_on_no_block_device_has_no_limit() {
        assert!(matches!(
            device_of(Path::new("/proc/version")),
            Err(CgroupError::NoDevice(_))
        ));
        assert!(matches!(
            device_of(Path::new("/nonexistent")),
            Err(CgroupError::Disk { .. })
        ));
    }

    #[test]
    fn what_is_gone_is_removed() {
        remove(Path::new("/nonexistent/cgroup")).unwrap();
    }
}
