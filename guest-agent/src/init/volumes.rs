//! Directories and files of the host.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use msb_protocol::identity::VolumeMount;
use rustix::mount::{MountFlags, UnmountFlags};

use super::degraded;

/// Where a file's file system is mounted while the file gets its place.
const STAGE: &str = "/run/.msb-volume";

/// A volume could not be put where it belongs. The guest does not go on without what its user gave it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {} for a volume", path.display())]
pub struct VolumeError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn step<E: Into<io::Error>>(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> VolumeError {
    let path = path.into();
    move |source| VolumeError {
        doing,
        path,
        source: source.into(),
    }
}

/// Mounts all volumes, in their order.
pub(super) fn mount_all(volumes: &[VolumeMount]) -> Result<(), VolumeError> {
    volumes.iter().try_for_each(|volume| match &volume.file {
        None => {
            let target = Path::new(&volume.path);
            fs::create_dir_all(target).map_err(step("create", target))?;
            mount(volume, target)
        }
        Some(file) => mount_file(volume, file),
    })
}

fn mount(volume: &VolumeMount, target: &Path) -> Result<(), VolumeError> {
    let read_only = if volume.read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | read_only;
    rustix::mount::mount(volume.tag.as_str(), target, "virtiofs", flags, None).map_err(step("mount", target))
}

/// Puts one file of a file system in its place; the rest of it is nowhere.
fn mount_file(volume: &VolumeMount, file: &str) -> Result<(), VolumeError> {
    let (target, stage) = (Path::new(&volume.path), Path::new(STAGE));
    make_file(target).map_err(step("create", target))?;
    fs::create_dir_all(stage).map_err(step("create", stage))?;
    mount(volume, stage)?;
    let bound = rustix::mount::mount_bind(stage.join(file), target).map_err(step("mount", target));
    let unmounted = rustix::mount::unmount(stage, UnmountFlags::DETACH).map_err(io::Error::from);
    if let Err(error) = unmounted.and_then(|()| fs::remove_dir(stage)) {
        degraded(&format!("cannot remove {STAGE}"), &error);
    }
    bound
}

/// Something to mount a file on.
fn make_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_to_mount_on_is_made_only_where_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/deep/file");
        make_file(&path).unwrap();
        fs::write(&path, "kept").unwrap();
        make_file(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        assert!(make_file(&path.join("below")).is_err());
    }
}
