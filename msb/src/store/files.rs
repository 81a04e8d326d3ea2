//! Files of the store: private, and whole or absent.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// An operation on a file failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system said no.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// A verb.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what msb wrote there.
    #[error("cannot understand {}{}", path.display(), of_key(key))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it, as `spec.disks[0].path`; empty for all of it.
        key: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

fn of_key(key: &str) -> String {
    match key {
        "" => String::new(),
        key => format!(" at {}", key.escape_debug()),
    }
}

impl FileError {
    /// For `map_err`: what was done to which path.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// Makes a directory, and those above it, that only its owner can enter. It may exist.
///
/// # Errors
/// When one cannot be made.
pub fn create_private_dirs(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FileError::io("create the directory", path))
}

/// Writes a new file that only its owner can read.
///
/// # Errors
/// When it exists or cannot be written whole.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(path)?.write_all(contents)
    };
    write().map_err(FileError::io("write", path))
}

/// Puts `contents` at `path`: readers see the old file or the whole new one. Concurrent writers need a lock.
///
/// # Errors
/// When it cannot be written; the old file is then untouched and no part of the new one is left.
pub fn replace_private(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&temporary)?.write_all(contents)?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        // Best effort: the failed write is what the caller must hear of.
        let _ = std::fs::remove_file(&temporary);
        FileError::io("write", path)(source)
    })
}

/// Like [`replace_private`], of a value as JSON.
///
/// # Errors
/// When it cannot be written.
pub fn replace_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    replace_private(path, &to_json(value))
}

/// A record of msb as the bytes of its file.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("records have string keys and no failing serializers");
    bytes.push(b'\n');
    bytes
}

/// Reads what [`replace_json`] wrote; `None` when there is no such file.
///
/// # Errors
/// When it cannot be read or is something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(None);
    };
    parse_json(&bytes)
        .map(Some)
        .map_err(|(key, source)| FileError::Malformed {
            path: path.into(),
            key,
            source,
        })
}

/// The value, or where it is wrong and how.
fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, (String, serde_json::Error)> {
    let json = &mut serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut *json).map_err(|error| {
        let key = error.path().to_string();
        let is_of_all = key == ".";
        (if is_of_all { String::new() } else { key }, error.into_inner())
    })?;
    json.end().map_err(|error| (String::new(), error))?;
    Ok(value)
}

/// Reads a file; `None` when there is none.
///
/// # Errors
/// When it cannot be read.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    optional(std::fs::read(path)).map_err(FileError::io("read", path))
}

/// Removes a file that may be gone already.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_optional(path: &Path) -> Result<(), FileError> {
    optional(std::fs::remove_file(path))
        .map(|_| ())
        .map_err(FileError::io("remove", path))
}

/// Removes a directory with what is in it; it may be gone already.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_dir_optional(path: &Path) -> Result<(), FileError> {
    optional(std::fs::remove_dir_all(path))
        .map(|_| ())
        .map_err(FileError::io("remove", path))
}

/// The names in a directory, which may be absent; those that are not UTF-8 are none of msb's.
///
/// # Errors
/// When it cannot be read.
pub fn list(dir: &Path) -> Result<Vec<String>, FileError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(FileError::io("read", dir))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    let names = names
        .collect::<io::Result<Vec<_>>>()
        .map_err(FileError::io("read", dir))?;
    Ok(names.into_iter().flatten().collect())
}

/// Waits until a file or directory is on the disk.
///
/// # Errors
/// When it cannot be written there.
pub fn sync(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(FileError::io("write to the disk", path))
}

/// Makes a new file of `size` bytes that takes no room yet and that only its owner can read.
///
/// # Errors
/// When it exists or cannot be made.
pub fn create_sparse(path: &Path, size: u64) -> Result<(), FileError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let created = options.open(path).and_then(|file| file.set_len(size));
    created.map_err(FileError::io("create", path))
}

/// Opens a new or empty log that only its owner can read.
///
/// # Errors
/// When it cannot be opened.
pub fn create_log(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    options.open(path).map_err(FileError::io("create", path))
}

/// Opens a log of several processes, each of which adds to it, that only its owner can read.
///
/// # Errors
/// When it cannot be opened.
pub fn append_log(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(path).map_err(FileError::io("create", path))
}

fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_replacement_that_fails_leaves_the_old_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        replace_private(&path, b"old").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // The temporary file cannot be opened for writing while a directory has its name.
        std::fs::create_dir(dir.path().join("record.tmp")).unwrap();
        let error = replace_private(&path, b"new").unwrap_err();
        assert!(error.to_string().ends_with("record"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn an_absent_record_is_none_and_a_torn_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), None);
        for torn in ["[1, 2", "", "[1, 2] [3]"] {
            std::fs::write(&path, torn).unwrap();
            assert!(matches!(read_json::<Vec<u8>>(&path), Err(FileError::Malformed { .. })));
        }
    }

    #[test]
    fn a_value_of_another_type_is_told_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        std::fs::write(&path, r#"{"a": [1, 2, "three"]}"#).unwrap();
        let error = read_json::<std::collections::BTreeMap<String, Vec<u8>>>(&path).unwrap_err();
        assert!(error.to_string().ends_with("record at a[2]"), "{error}");
    }
}
