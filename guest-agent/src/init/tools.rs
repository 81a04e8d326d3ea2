//! The disk with the image's tools: programs that are read when they run instead of unpacked at boot.

use msb_protocol::identity::{TOOLS, TOOLS_SERIAL};
use rustix::mount::MountFlags;

use super::{degraded, disks};

/// Mounts the tools, if the host gave the guest their disk.
pub(super) fn mount() {
    let Some(disk) = disks::find(TOOLS_SERIAL) else {
        return;
    };
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    if let Err(error) = rustix::mount::mount(&disk, TOOLS, "erofs", flags, None) {
        degraded(&format!("cannot mount {} on {TOOLS}", disk.display()), &error);
    }
}
