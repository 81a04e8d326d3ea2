//! Paths of an image: from its root, without tricks.

use std::fmt;

/// The longest name of a file, in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// The longest path, in bytes (`PATH_MAX` with its NUL).
pub const MAX_PATH: usize = 4095;

/// Why a path cannot be one of an image.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum PathError {
    /// It climbs.
    #[error("the path '{0}' has a '..'")]
    Climbs(Shown),
    /// It has a NUL.
    #[error("the path '{0}' has a zero byte")]
    Nul(Shown),
    /// A name or all of it is too long.
    #[error("the path '{0}' is longer than a path can be, or a name in it longer than {MAX_NAME} bytes")]
    TooLong(Shown),
}

/// The beginning of a path as printable text, for messages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shown(String);

impl Shown {
    /// Of any bytes.
    pub fn new(path: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
        Self(text.chars().flat_map(char::escape_debug).collect())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The names on the way from the root to a file; none for the root itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImagePath<'a>(Vec<&'a [u8]>);

impl<'a> ImagePath<'a> {
    /// Takes a path apart, relative to the root whether it says so or not.
    ///
    /// # Errors
    /// When it climbs with `..`, holds a NUL or is too long.
    pub fn parse(path: &'a [u8]) -> Result<Self, PathError> {
        let shown = || Shown::new(path);
        if path.contains(&0) {
            return Err(PathError::Nul(shown()));
        }
        let mut names = Vec::new();
        for name in path.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(PathError::Climbs(shown())),
                name if name.len() > MAX_NAME => return Err(PathError::TooLong(shown())),
                name => names.push(name),
            }
        }
        match path.len() > MAX_PATH {
            true => Err(PathError::TooLong(shown())),
            false => Ok(Self(names)),
        }
    }

    /// The way to the file's directory and the file's name; `None` for the root.
    pub fn split_last(&self) -> Option<(&'a [u8], &[&'a [u8]])> {
        self.0.split_last().map(|(name, parents)| (*name, parents))
    }

    /// All names.
    pub fn names(&self) -> &[&'a [u8]] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_is_relative_to_the_root_however_it_is_written() {
        for path in ["usr/bin", "/usr/bin", "./usr//bin/", "//usr/./bin"] {
            let parsed = ImagePath::parse(path.as_bytes()).unwrap();
            assert_eq!(parsed.names(), [b"usr".as_slice(), b"bin"], "{path}");
        }
        assert_eq!(ImagePath::parse(b"./").unwrap().split_last(), None);
    }

    #[test]
    fn what_climbs_or_cannot_be_a_path_is_refused() {
        assert!(matches!(ImagePath::parse(b"a/../../etc"), Err(PathError::Climbs(_))));
        assert!(matches!(ImagePath::parse(b"a\0b"), Err(PathError::Nul(_))));
        assert!(ImagePath::parse(&[b'a'; MAX_NAME]).is_ok());
        assert!(matches!(
            ImagePath::parse(&[b'a'; MAX_NAME + 1]),
            Err(PathError::TooLong(_))
        ));
        assert!(matches!(
            ImagePath::parse(&b"a/".repeat(3000)),
            Err(PathError::TooLong(_))
        ));
    }

    proptest! {
        #[test]
        fn no_path_leads_out_of_the_image(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(parsed) = ImagePath::parse(&path) {
                for name in parsed.names() {
                    prop_assert!(!name.is_empty() && *name != b"." && *name != b".." && !name.contains(&b'/'));
                }
            }
        }
    }
}
