//! Absolute paths and home directories. Paths are bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::users::User;

/// The path a client means; none means the working directory.
pub(super) fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes }))
}

/// The absolute path without links and dots. Its last component need not exist.
pub(super) fn canonical(given: &Path) -> Result<Vec<u8>, Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let resolved = match std::fs::canonicalize(given) {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = given.file_name().ok_or(Errno::NOENT)?;
            let parent = given.parent().filter(|parent| !parent.as_os_str().is_empty());
            std::fs::canonicalize(parent.unwrap_or(Path::new(".")))
                .map_err(errno)?
                .join(name)
        }
        Err(error) => return Err(errno(error)),
    };
    Ok(resolved.into_os_string().into_vec())
}

/// Replaces a leading `~` or `~user`.
pub(super) fn expand(bytes: &[u8]) -> Result<PathBuf, Errno> {
    let Some(rest) = bytes.strip_prefix(b"~") else {
        return Ok(path(bytes).into());
    };
    let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let home = home(&rest[..end])?;
    let below = rest[end..]
        .iter()
        .position(|&byte| byte != b'/')
        .map_or(&[][..], |start| &rest[end + start..]);
    Ok(if below.is_empty() {
        home
    } else {
        home.join(OsStr::from_bytes(below))
    })
}

/// The home directory of a user; an empty name means the login user.
pub(super) fn home(user: &[u8]) -> Result<PathBuf, Errno> {
    if user.is_empty() {
        return std::env::var_os("HOME").map(PathBuf::from).ok_or(Errno::NOENT);
    }
    let name = std::str::from_utf8(user).map_err(|_| Errno::NOENT)?;
    User::by_name(name).map(|user| user.home).ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_component_of_a_path_need_not_exist() {
        assert_eq!(canonical(Path::new("/usr/../none-such")).unwrap(), b"/none-such");
        assert_eq!(canonical(Path::new("/none-such/below")), Err(Errno::NOENT));
    }

    #[test]
    fn a_tilde_means_a_home() {
        assert_eq!(expand(b"~root/a/b").unwrap(), home(b"root").unwrap().join("a/b"));
        assert_eq!(expand(b"a~b").unwrap(), Path::new("a~b"));
        assert!(expand(b"~no-such-user-here/a").is_err());
    }
}
