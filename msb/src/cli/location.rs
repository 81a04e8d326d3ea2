//! The two ends of a copy.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where a copy comes from or goes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Location {
    /// Standard input or output.
    Stream,
    /// A path on this machine.
    Here(PathBuf),
    /// A path in a sandbox.
    In {
        /// Name, id or beginning of the id.
        sandbox: String,
        /// Relative ones begin in the home directory.
        path: PathBuf,
    },
}

impl From<&OsStr> for Location {
    /// `-`, or `SANDBOX:PATH` where a colon comes before any slash, or a path of this machine.
    fn from(argument: &OsStr) -> Self {
        let bytes = argument.as_bytes();
        if bytes == b"-" {
            return Self::Stream;
        }
        let colon = bytes.iter().position(|&byte| byte == b':' || byte == b'/');
        let Some((name, path)) = colon
            .filter(|&at| bytes[at] == b':')
            .map(|at| (&bytes[..at], &bytes[at + 1..]))
        else {
            return Self::Here(argument.into());
        };
        match str::from_utf8(name) {
            Ok(name) if !name.is_empty() => Self::In {
                sandbox: name.to_owned(),
                path: below_home(path).into(),
            },
            _ => Self::Here(argument.into()),
        }
    }
}

/// The path without a leading `~`: relative ones begin in the home directory anyway.
fn below_home(path: &[u8]) -> &OsStr {
    let path = match path.strip_prefix(b"~") {
        Some(b"") => b"",
        Some([b'/', below @ ..]) => below,
        _ => path,
    };
    OsStr::from_bytes(if path.is_empty() { b"." } else { path })
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream => formatter.write_str("-"),
            Self::Here(path) => write!(formatter, "{}", path.display()),
            Self::In { sandbox, path } => write!(formatter, "{sandbox}:{}", path.display()),
        }
    }
}

/// The name that a copy of `path` has in a directory. None means the directory itself: a copy of `.`, `..`, `/` or
/// `something/.` is one of its content.
pub(super) fn own_name(path: &Path) -> Option<OsString> {
    let bytes = path.as_os_str().as_bytes();
    if bytes == b"." || bytes.ends_with(b"/.") {
        return None;
    }
    path.file_name().map(OsStr::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_names_a_sandbox() {
        let parsed = |text: &str| Location::from(OsStr::new(text));
        let inside = |sandbox: &str, path: &str| Location::In {
            sandbox: sandbox.into(),
            path: path.into(),
        };
        assert_eq!(parsed("box:/etc/a:b"), inside("box", "/etc/a:b"));
        assert_eq!(parsed("box:"), inside("box", "."));
        assert_eq!(parsed("box:a"), inside("box", "a"));
        assert_eq!(parsed("box:~/a"), inside("box", "a"));
        assert_eq!(parsed("box:~"), inside("box", "."));
        assert_eq!(parsed("box:~user/a"), inside("box", "~user/a"));
        assert_eq!(parsed("./box:a"), Location::Here("./box:a".into()));
        assert_eq!(parsed("/box:a"), Location::Here("/box:a".into()));
        assert_eq!(parsed(":a"), Location::Here(":a".into()));
        assert_eq!(parsed("box"), Location::Here("box".into()));
        assert_eq!(parsed("-"), Location::Stream);
        let odd = OsStr::from_bytes(b"box:\xff");
        assert_eq!(
            Location::from(odd),
            Location::In {
                sandbox: "box".into(),
                path: OsStr::from_bytes(b"\xff").into()
            }
        );
    }

    #[test]
    fn the_content_of_a_directory_has_no_name() {
        let name = |path: &str| own_name(Path::new(path)).map(|name| name.into_string().unwrap());
        assert_eq!(name("a/b"), Some("b".into()));
        assert_eq!(name("a/b/"), Some("b".into()));
        for content in [".", "..", "/", "a/.", "a/.."] {
            assert_eq!(name(content), None, "{content}");
        }
    }
}
