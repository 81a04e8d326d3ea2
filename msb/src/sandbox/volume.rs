//! Directories and files of the host in a guest.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A directory or file of the host that the guest has at a path of its own. Written `HOST:GUEST` or `HOST:GUEST:ro`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// What the host calls it.
    pub host: PathBuf,
    /// What the guest calls it: an absolute path, made where it is missing.
    pub guest: String,
    /// The guest cannot write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// Why a volume cannot be had.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum VolumeError {
    /// The text is no volume.
    #[error("'{0}' is no volume; write HOST:GUEST or HOST:GUEST:ro")]
    Text(String),
    /// The guest's path starts nowhere.
    #[error("the path {0:?} of a volume in the guest must be absolute, without '.' and '..'")]
    Relative(String),
    /// The guest's path is not for volumes.
    #[error("a volume cannot be at {0} in the guest: {TAKEN} are the guest's own")]
    Taken(String),
    /// Two would be at one place.
    #[error("two volumes cannot be at {0} in the guest")]
    Twice(String),
    /// It is neither a directory nor a file.
    #[error("the volume {} is neither a directory nor a file", .0.display())]
    Kind(PathBuf),
}

/// For people: where no volume can be.
const TAKEN: &str = "/, /dev, /proc and /sys";

/// The directories of the guest's kernel.
const KERNEL: [&str; 3] = ["dev", "proc", "sys"];

impl FromStr for Volume {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let (both, read_only) = match text.strip_suffix(":ro") {
            Some(both) => (both, true),
            None => (text, false),
        };
        match both.rsplit_once(':') {
            Some((host, guest)) if !host.is_empty() && !guest.is_empty() => Ok(Self {
                host: host.into(),
                guest: guest.into(),
                read_only,
            }),
            _ => Err(VolumeError::Text(text.into())),
        }
    }
}

/// Checks the paths in the guest and orders the volumes, so that one in another is mounted behind it.
///
/// # Errors
/// With the first that cannot be.
pub(super) fn validate(volumes: &mut [Volume]) -> Result<(), VolumeError> {
    for volume in &mut *volumes {
        volume.guest = checked(&volume.guest)?;
        if !(volume.host.is_dir() || volume.host.is_file()) {
            return Err(VolumeError::Kind(volume.host.clone()));
        }
    }
    volumes.sort_by(|one, other| Path::new(&one.guest).cmp(Path::new(&other.guest)));
    let twice = volumes.windows(2).find(|pair| pair[0].guest == pair[1].guest);
    twice.map_or(Ok(()), |pair| Err(VolumeError::Twice(pair[0].guest.clone())))
}

/// The path in its shortest form.
fn checked(guest: &str) -> Result<String, VolumeError> {
    let mut components = Path::new(guest).components();
    let relative = || VolumeError::Relative(guest.into());
    if components.next() != Some(Component::RootDir) || guest.contains(char::is_control) {
        return Err(relative());
    }
    let mut path = String::new();
    for component in components {
        let Component::Normal(name) = component else {
            return Err(relative());
        };
        path.push('/');
        path.push_str(name.to_str().expect("a part of a text between slashes is text"));
    }
    let first = path.split('/').nth(1).unwrap_or_default();
    if path.is_empty() || KERNEL.contains(&first) {
        return Err(VolumeError::Taken(guest.into()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> Volume {
        text.parse().unwrap()
    }

    #[test]
    fn the_guest_path_is_behind_the_last_colon() {
        let parsed = volume("/a:b:/c:ro");
        assert_eq!(
            (parsed.host, parsed.guest.as_str(), parsed.read_only),
            ("/a:b".into(), "/c", true)
        );
        let parsed = volume("src:/src");
        assert_eq!(
            (parsed.host, parsed.guest.as_str(), parsed.read_only),
            ("src".into(), "/src", false)
        );
        for bad in ["", "/a", "/a:", ":/a", ":ro", "/a:ro"] {
            assert_eq!(bad.parse::<Volume>(), Err(VolumeError::Text(bad.into())), "{bad}");
        }
    }

    #[test]
    fn a_path_that_no_volume_can_have_is_refused() {
        let refused = |guest: &str| validate(&mut [volume(&format!("/tmp:{guest}"))]).unwrap_err();
        for guest in ["relative", "./x", "/a/../etc", "/a\nb"] {
            assert_eq!(refused(guest), VolumeError::Relative(guest.into()), "{guest}");
        }
        for guest in ["/", "//", "/proc", "/proc/1", "/sys/x", "/dev/"] {
            assert_eq!(refused(guest), VolumeError::Taken(guest.into()), "{guest}");
        }
        let mut twice = [volume("/tmp:/a/"), volume("/usr:/a")];
        assert_eq!(validate(&mut twice), Err(VolumeError::Twice("/a".into())));
        let mut device = [volume("/dev/null:/a")];
        assert_eq!(validate(&mut device), Err(VolumeError::Kind("/dev/null".into())));
    }

    #[test]
    fn a_volume_in_another_is_mounted_behind_it() {
        let mut volumes = [volume("/tmp:/a/b"), volume("/tmp:/a.b"), volume("/usr:/a/")];
        validate(&mut volumes).unwrap();
        let guests: Vec<_> = volumes.iter().map(|volume| volume.guest.as_str()).collect();
        assert_eq!(guests, ["/a", "/a/b", "/a.b"]);
    }
}
