//! The root file system of a guest that is made from an image: the image, read-only and shared with other guests, below
//! a disk of the guest's own. Nothing of the image is needed to get there, and no program of it runs.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use msb_protocol::identity::{IMAGE_SERIAL, ImageRoot, WRITABLE_SERIAL};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::{degraded, disks};

/// Where the parts are mounted, in the initramfs.
const IMAGE: &str = "/.root/image";
const WRITABLE: &str = "/.root/writable";
const MERGED: &str = "/.root/merged";

/// Formats a disk. A program of the tools.
const MKFS: &str = "/sbin/mke2fs";

/// What moves to the new root, with all that is mounted in it. `/run` and `/tmp` do not: an image may have files there.
const MOVED: [&str; 3] = ["dev", "proc", "sys"];

/// Where the file system has its superblock: an empty disk has zeros up to there and beyond.
const FIRST_BLOCK: usize = 4096;

/// Why the guest has no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The host gave the guest no such disk.
    #[error("there is no disk with the serial number {0}")]
    NoDisk(&'static str),
    /// A step failed.
    #[error("cannot {doing} {}", path.display())]
    Step {
        /// A verb.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk has something that is no file system.
    #[error("{} has neither a file system nor zeros only, so it is not formatted", .0.display())]
    Foreign(PathBuf),
    /// The disk could not be formatted.
    #[error("cannot format {}: {reason}", disk.display())]
    Format {
        /// The disk.
        disk: PathBuf,
        /// What the program said.
        reason: String,
    },
    /// The image has something else where file systems of the kernel belong.
    #[error("the image's /{0} is no directory")]
    NoMountPoint(&'static str),
}

/// The guest's own disk below the root file system.
#[derive(Debug)]
pub(super) struct Writable(OwnedFd);

impl Writable {
    /// Has all that was written on the disk, and nothing more be written.
    pub(super) fn release(&self) {
        let layers = ["/".to_owned(), format!("/proc/self/fd/{}", self.0.as_raw_fd())];
        for layer in layers {
            if let Err(error) = rustix::mount::mount_remount(layer.as_str(), MountFlags::RDONLY, "") {
                degraded(&format!("cannot release {layer}"), &error);
            }
        }
    }
}

/// Makes the image's files those of the whole guest.
pub(super) fn enter(image: &ImageRoot) -> Result<Writable, RootError> {
    for directory in [IMAGE, WRITABLE, MERGED] {
        fs::create_dir_all(directory).map_err(step("create", directory))?;
    }
    let disk = disks::find(IMAGE_SERIAL).ok_or(RootError::NoDisk(IMAGE_SERIAL))?;
    mount(&disk, IMAGE, "erofs", MountFlags::RDONLY, "")?;
    let disk = disks::find(WRITABLE_SERIAL).ok_or(RootError::NoDisk(WRITABLE_SERIAL))?;
    if is_blank(&disk)? {
        format(&disk)?;
    }
    mount(&disk, WRITABLE, "ext4", MountFlags::NOATIME, "")?;
    let upper = make_upper()?;
    let options = format!("lowerdir={IMAGE},upperdir={upper},workdir={WRITABLE}/work,redirect_dir=on,xino=auto");
    mount(Path::new("overlay"), MERGED, "overlay", MountFlags::empty(), &options)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let writable =
        rustix::fs::open(WRITABLE, flags, Mode::empty()).map_err(|error| step("open", WRITABLE)(error.into()))?;
    for name in MOVED {
        move_mount(name)?;
    }
    switch().map_err(step("change the root to", MERGED))?;
    make_directory("/tmp", 0o1777)?;
    make_directory("/run", 0o755)?;
    if !image.working_dir.is_empty() {
        let made = fs::create_dir_all(Path::new("/").join(&image.working_dir));
        made.unwrap_or_else(|error| degraded(&format!("cannot create {}", image.working_dir), &error));
    }
    Ok(Writable(writable))
}

/// Lets the guest know its own name, where the image says nothing of names.
pub(super) fn name(hostname: &str) {
    let hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {hostname}\n");
    for (path, contents) in [("/etc/hostname", format!("{hostname}\n")), ("/etc/hosts", hosts)] {
        if let Err(error) = fill(Path::new(path), &contents) {
            degraded(&format!("cannot write {path}"), &error);
        }
    }
}

/// Writes a file that is absent or empty.
fn fill(path: &Path, contents: &str) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|file| !file.is_file() || file.len() > 0) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut options = File::options();
    options
        .write(true)
        .create(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW);
    options.open(path)?.write_all(contents.as_bytes())
}

/// Whether nothing was ever written to the disk.
fn is_blank(disk: &Path) -> Result<bool, RootError> {
    /// The magic number of ext4, and where it is.
    const MAGIC: ([u8; 2], usize) = ([0x53, 0xef], 1024 + 56);
    let mut block = [0; FIRST_BLOCK];
    File::open(disk)
        .and_then(|mut file| file.read_exact(&mut block))
        .map_err(step("read", disk))?;
    if block[MAGIC.1..].starts_with(&MAGIC.0) {
        return Ok(false);
    }
    match block.iter().all(|&byte| byte == 0) {
        true => Ok(true),
        false => Err(RootError::Foreign(disk.into())),
    }
}

/// Makes a file system. Its superblock is written last, so a disk that was left half-formatted is blank.
fn format(disk: &Path) -> Result<(), RootError> {
    let failed = |reason: String| RootError::Format {
        disk: disk.into(),
        reason,
    };
    let made = Command::new(MKFS)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(disk)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{MKFS}: {error}")))?;
    match made.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&made.stderr).trim().to_owned())),
    }
}

/// The directories of the overlay. The root directory is the one of the image, also in what only the overlay shows.
fn make_upper() -> Result<String, RootError> {
    let (upper, made) = (format!("{WRITABLE}/upper"), format!("{WRITABLE}/upper.new"));
    fs::create_dir_all(format!("{WRITABLE}/work")).map_err(step("create", WRITABLE))?;
    if fs::exists(&upper).map_err(step("examine", &upper))? {
        return Ok(upper);
    }
    let like_image = || {
        let image = fs::metadata(IMAGE)?;
        fs::create_dir_all(&made)?;
        chown(&made, Some(image.uid()), Some(image.gid()))?;
        fs::set_permissions(&made, image.permissions())?;
        fs::rename(&made, &upper)
    };
    like_image().map_err(step("create", &upper))?;
    Ok(upper)
}

fn mount(source: &Path, target: &'static str, kind: &str, flags: MountFlags, data: &str) -> Result<(), RootError> {
    let data = CString::new(data).expect("options are made of constants");
    rustix::mount::mount(source, target, kind, flags, data.as_c_str())
        .map_err(|error| step("mount", source)(error.into()))
}

/// Moves what is mounted at `/name` into the new root.
fn move_mount(name: &'static str) -> Result<(), RootError> {
    let target = format!("{MERGED}/{name}");
    make_directory(&target, 0o755)?;
    // A link would lead out of the new root.
    if !fs::symlink_metadata(&target).is_ok_and(|file| file.is_dir()) {
        return Err(RootError::NoMountPoint(name));
    }
    rustix::mount::mount_move(format!("/{name}"), &target)
        .map_err(|error| step("move", format!("/{name}"))(error.into()))
}

/// As switch_root(8) does it: an initramfs cannot be unmounted, only covered.
fn switch() -> io::Result<()> {
    // What is mounted there stays the initramfs's.
    for shadowed in ["/tmp", "/run"] {
        let _ = rustix::mount::unmount(shadowed, UnmountFlags::DETACH);
    }
    rustix::process::chdir(MERGED)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Makes a directory unless something has its name.
fn make_directory(path: &str, mode: u32) -> Result<(), RootError> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().mode(mode).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(step("create", path))
}

fn step(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> RootError {
    let path = path.into();
    move |source| RootError::Step { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_of_zeros_is_blank_and_what_is_no_file_system_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        let with = |at: usize, bytes: &[u8]| {
            let mut block = vec![0; FIRST_BLOCK];
            block[at..at + bytes.len()].copy_from_slice(bytes);
            fs::write(&disk, block).unwrap();
            is_blank(&disk)
        };
        assert!(with(0, b"").unwrap());
        assert!(!with(1080, b"\x53\xef").unwrap());
        assert!(matches!(with(3000, b"data"), Err(RootError::Foreign(_))));
    }

    #[test]
    fn only_what_says_nothing_is_filled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/hosts");
        fill(&path, "ours").unwrap();
        fill(&path, "again").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
    }
}
