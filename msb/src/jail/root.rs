//! A root directory with nothing in it but one directory, or that is the directory of a volume.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, mount_remount,
    move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root, umask};

use super::JailError;

const HARDENED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Makes `kept` all that there is, under its own name and read-only. Needs a mount namespace of its own, and
/// `CAP_SYS_ADMIN` over it.
///
/// # Errors
/// When a mount fails.
pub fn replace(kept: &Path) -> Result<(), JailError> {
    make_mounts_private()?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, kept, flags).map_err(JailError::refused("keep the directory of sockets"))?;

    mount("none", kept, "tmpfs", HARDENED, c"size=64k,mode=0755").map_err(JailError::refused("mount an empty root"))?;
    let inside = kept.join(kept.strip_prefix("/").unwrap_or(kept));
    // Whichever user the process becomes finds its way.
    let before = umask(Mode::WGRP | Mode::WOTH);
    let made = fs::create_dir_all(&inside);
    umask(before);
    made.map_err(JailError::refused("make a directory in the empty root"))?;
    let to_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, c"", CWD, &inside, to_path).map_err(JailError::refused("mount the directory of sockets"))?;
    let read_only = HARDENED | MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(&inside, read_only, c"").map_err(JailError::refused("make the directory of sockets read-only"))?;

    enter(kept)?;
    mount_remount("/", read_only, c"").map_err(JailError::refused("make the empty root read-only"))
}

/// Makes the directory `volume` all that there is, with what is mounted in it; or the file, which is then the only one of a
/// directory, under the name `file`. Neither devices nor set-user-ID programs work there, and nothing can
/// be written unless it is `writable`. Needs what [`replace`] does.
///
/// # Errors
/// When a mount fails.
pub fn replace_by_volume(volume: &OwnedFd, file: Option<&str>, writable: bool) -> Result<(), JailError> {
    /// A directory to mount on, which is in every file system with processes.
    const PLACE: &str = "/proc";
    make_mounts_private()?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(volume, c"", flags).map_err(JailError::refused("keep the volume"))?;
    harden(&tree, writable).map_err(JailError::refused("take rights from the volume's mount"))?;
    let to_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let place = Path::new(PLACE);
    let Some(name) = file else {
        move_mount(&tree, c"", CWD, PLACE, to_path).map_err(JailError::refused("mount the volume"))?;
        return enter(place);
    };
    mount("none", place, "tmpfs", HARDENED, c"size=64k,mode=0755")
        .map_err(JailError::refused("mount an empty root"))?;
    let target = place.join(name);
    fs::write(&target, "").map_err(JailError::refused("make a file in the empty root"))?;
    move_mount(&tree, c"", CWD, &target, to_path).map_err(JailError::refused("mount the volume"))?;
    enter(place)?;
    let read_only = HARDENED | MountFlags::BIND | MountFlags::RDONLY;
    mount_remount("/", read_only, c"").map_err(JailError::refused("make the empty root read-only"))
}

fn make_mounts_private() -> Result<(), JailError> {
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", everything).map_err(JailError::refused("make the mounts private"))
}

/// Makes what is mounted at `root` the root directory, and leaves the one before.
fn enter(root: &Path) -> Result<(), JailError> {
    // Old and new root at the same place: what is unmounted is the old one, which is on top.
    let entering = "enter the new root";
    chdir(root).map_err(JailError::refused(entering))?;
    pivot_root(".", ".").map_err(JailError::refused(entering))?;
    unmount(".", UnmountFlags::DETACH).map_err(JailError::refused("leave the host's root"))?;
    chdir("/").map_err(JailError::refused(entering))
}

/// mount_setattr(2) for all mounts of `tree`.
fn harden(tree: &OwnedFd, writable: bool) -> io::Result<()> {
    /// `struct mount_attr` (linux/mount.h).
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const RDONLY: u64 = 1;
    const NOSUID: u64 = 2;
    const NODEV: u64 = 4;
    const NOEXEC: u64 = 8;
    let attributes = Attributes {
        set: NOSUID | NODEV | NOEXEC | if writable { 0 } else { RDONLY },
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: the path is an empty string, and the structure is passed with its own size and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
