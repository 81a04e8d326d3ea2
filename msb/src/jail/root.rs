//! A root directory with nothing in it but one directory.

use std::fs;
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
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", everything).map_err(JailError::refused("make the mounts private"))?;
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

    // Old and new root at the same place: what is unmounted is the old one, which is on top.
    let entering = "enter the empty root";
    chdir(kept).map_err(JailError::refused(entering))?;
    pivot_root(".", ".").map_err(JailError::refused(entering))?;
    unmount(".", UnmountFlags::DETACH).map_err(JailError::refused("leave the host's root"))?;
    chdir("/").map_err(JailError::refused(entering))?;
    mount_remount("/", read_only, c"").map_err(JailError::refused("make the empty root read-only"))
}
