//! The layers of a guest: directories on its own disk, each on top of the one before and all of them on top of the image.
//!
//! ```text
//! upper        what the guest wrote when it started, and all it writes when nobody asks for layers
//! layers/N     the layers, from 1
//! layers/N.work
//! ```
//!
//! The guest's disks are mounted here once more, where no path leads to: nothing of the guest's own files is needed.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use msb_protocol::identity::{IMAGE_SERIAL, WRITABLE_SERIAL};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount_move, move_mount, unmount,
};

use super::LayerError;
use crate::init::disks;

/// What is mounted below the root and goes with it, the last one last: paths to the others lead through it.
const MOVED: [&str; 3] = ["dev", "sys", "proc"];

/// How an overlay is mounted: renaming a directory of a lower layer is refused, and programs then copy it. A layer could
/// not say that it was renamed.
const OPTIONS: [(&str, &str); 2] = [("redirect_dir", "off"), ("xino", "auto")];

pub(super) struct Stack {
    image: OwnedFd,
    writable: OwnedFd,
    /// How many layers there are.
    count: u32,
}

impl Stack {
    pub(super) fn open() -> Result<Self, LayerError> {
        let find = |serial| disks::find(serial).ok_or(LayerError::NoImage);
        let (image, writable) = (find(IMAGE_SERIAL)?, find(WRITABLE_SERIAL)?);
        let mut stack = Self {
            image: mount_disk(&image, "erofs", true)?,
            writable: mount_disk(&writable, "ext4", false)?,
            count: 0,
        };
        while stack.layer(stack.count + 1).exists() {
            stack.count += 1;
        }
        Ok(stack)
    }

    /// The layer that is written to, if one was begun.
    pub(super) fn current(&self) -> Option<PathBuf> {
        (self.count > 0).then(|| self.layer(self.count))
    }

    /// Makes an overlay with another layer on top the root of all processes.
    pub(super) fn grow(self) -> Result<(), LayerError> {
        let next = self.count + 1;
        let (upper, work) = (self.layer(next), self.below(&format!("layers/{next}.work")));
        fs::create_dir_all(&work).map_err(failed("create", &work))?;
        // Under another name until it is as the root is now: what has the name is complete.
        let made = self.below("layers/new");
        fs::create_dir_all(&made).map_err(failed("create", &made))?;
        like_root(&made)
            .and_then(|()| fs::rename(&made, &upper))
            .map_err(failed("create", &upper))?;
        // An overlay is made only of what is mounted somewhere.
        cover_root(&self.writable)?;
        cover_root(&self.image)?;
        let root = self.mount_overlay(&upper, &work)?;
        cover_root(&root)?;
        rustix::process::fchdir(&root).map_err(errno("enter", &upper))?;
        for name in MOVED {
            mount_move(format!("/{name}"), name).map_err(errno("move", &Path::new("/").join(name)))?;
        }
        // The new root takes the old one's place for every process, and covers it until it is unmounted (pivot_root(2)).
        rustix::process::pivot_root(".", ".").map_err(errno("change the root to", &upper))?;
        unmount(".", UnmountFlags::DETACH).map_err(errno("unmount", Path::new("/")))
    }

    fn mount_overlay(&self, upper: &Path, work: &Path) -> Result<OwnedFd, LayerError> {
        let below = (1..=self.count).rev().map(|number| self.layer(number));
        let below = below.chain([self.below("upper"), path_of(&self.image)]);
        let mount = || -> rustix::io::Result<OwnedFd> {
            let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
            let set = |key: &str, value: &Path| fsconfig_set_string(overlay.as_fd(), key, value);
            for layer in below {
                set("lowerdir+", &layer)?;
            }
            set("upperdir", upper)?;
            set("workdir", work)?;
            for (key, value) in OPTIONS {
                set(key, Path::new(value))?;
            }
            fsconfig_create(overlay.as_fd())?;
            fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        };
        mount().map_err(errno("mount an overlay on", upper))
    }

    fn layer(&self, number: u32) -> PathBuf {
        self.below(&format!("layers/{number}"))
    }

    fn below(&self, name: &str) -> PathBuf {
        path_of(&self.writable).join(name)
    }
}

/// Mounts on top of the root, where no path leads to that begins at the root.
fn cover_root(mount: &OwnedFd) -> Result<(), LayerError> {
    let covered = move_mount(mount, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    covered.map_err(errno("mount", Path::new("/")))
}

/// Gives a directory owner and mode of the root.
fn like_root(directory: &Path) -> io::Result<()> {
    let root = fs::metadata("/")?;
    chown(directory, Some(root.uid()), Some(root.gid()))?;
    fs::set_permissions(directory, Permissions::from_mode(root.mode() & 0o7777))
}

/// The file system of a disk, which the kernel has only one of however often it is mounted.
fn mount_disk(disk: &Path, kind: &str, read_only: bool) -> Result<OwnedFd, LayerError> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        if read_only {
            fsconfig_set_flag(context.as_fd(), "ro")?;
        }
        fsconfig_set_string(context.as_fd(), "source", disk)?;
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    mount().map_err(errno("mount", disk))
}

fn path_of(mount: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", mount.as_raw_fd()).into()
}

fn errno(doing: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> LayerError + use<> {
    let failed = failed(doing, path);
    move |error| failed(error.into())
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayerError + use<> {
    let path = path.to_owned();
    move |source| LayerError::Stack { doing, path, source }
}
