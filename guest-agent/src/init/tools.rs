//! The disk with the image's tools: programs that are read when they run instead of unpacked at boot.

use std::fs;
use std::path::{Path, PathBuf};

use msb_protocol::identity::{TOOLS, TOOLS_SERIAL};
use rustix::mount::MountFlags;

use super::degraded;

/// Mounts the tools, if the host gave the guest their disk.
pub(super) fn mount() {
    let Some(disk) = find_disk(Path::new("/sys/block")) else {
        return;
    };
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    if let Err(error) = rustix::mount::mount(&disk, TOOLS, "erofs", flags, None) {
        degraded(&format!("cannot mount {} on {TOOLS}", disk.display()), &error);
    }
}

/// The device whose serial number says that it has the tools.
fn find_disk(blocks: &Path) -> Option<PathBuf> {
    fs::read_dir(blocks).ok()?.flatten().find_map(|block| {
        let serial = fs::read(block.path().join("serial")).ok()?;
        (serial.trim_ascii_end() == TOOLS_SERIAL.as_bytes()).then(|| Path::new("/dev").join(block.file_name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_are_found_by_their_serial_number_alone() {
        let blocks = tempfile::tempdir().unwrap();
        for (name, serial) in [
            ("vda", ""),
            ("vdb", "msb-tools-not"),
            ("vdc", "msb-tools\n"),
            ("loop0", "x"),
        ] {
            fs::create_dir(blocks.path().join(name)).unwrap();
            fs::write(blocks.path().join(name).join("serial"), serial).unwrap();
        }
        assert_eq!(find_disk(blocks.path()), Some("/dev/vdc".into()));
        fs::remove_dir_all(blocks.path().join("vdc")).unwrap();
        assert_eq!(find_disk(blocks.path()), None);
    }
}
