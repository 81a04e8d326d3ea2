//! A user's own `~/.ssh/authorized_keys`, taken only where nobody else could have written it, as sshd does with its
//! default `StrictModes yes`.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Where it is in the home directory.
const FILE: &str = ".ssh/authorized_keys";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Permissions that nobody but the owner may have.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Reads the file of the user `uid`, in whose rights this runs.
///
/// # Errors
/// When it cannot be read, is no regular file or too large, or when others could have written it or put it there.
pub fn read(home: &Path, uid: u32) -> io::Result<Vec<u8>> {
    let home = home.canonicalize()?;
    let path = home.join(FILE).canonicalize()?;
    // A pipe in its place must not hold anybody up.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    check(&metadata, uid)?;
    for directory in path.ancestors().skip(1) {
        check(&directory.symlink_metadata()?, uid)?;
        if directory == home {
            break;
        }
    }
    let mut contents = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut contents)?;
    Ok(contents)
}

fn check(metadata: &Metadata, uid: u32) -> io::Result<()> {
    let owned = metadata.uid() == 0 || metadata.uid() == uid;
    if owned && metadata.mode() & WRITABLE_BY_OTHERS == 0 {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A home directory whose keys are safe.
    fn home() -> (tempfile::TempDir, u32) {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        fs::write(home.path().join(FILE), "keys").unwrap();
        for path in [".ssh", FILE] {
            fs::set_permissions(home.path().join(path), Permissions::from_mode(0o700)).unwrap();
        }
        (home, rustix::process::geteuid().as_raw())
    }

    #[test]
    fn keys_that_only_the_owner_could_write_are_read() {
        let (home, uid) = home();
        assert_eq!(read(home.path(), uid).unwrap(), b"keys");
    }

    #[test]
    fn keys_that_others_could_have_put_there_are_not() {
        for path in [FILE, ".ssh", ""] {
            let (home, uid) = home();
            fs::set_permissions(home.path().join(path), Permissions::from_mode(0o770)).unwrap();
            let refused = read(home.path(), uid).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{path}");
        }
    }

    #[test]
    fn keys_elsewhere_count_where_the_way_there_is_safe() {
        let (home, uid) = home();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("keys"), "others").unwrap();
        fs::remove_file(home.path().join(FILE)).unwrap();
        symlink(elsewhere.path().join("keys"), home.path().join(FILE)).unwrap();
        // All may write to the directory that temporary ones are in.
        assert_eq!(
            read(home.path(), uid).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn what_is_no_file_of_some_size_is_not_read() {
        let (home, uid) = home();
        let path = home.path().join(FILE);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MAX_FILE + 1)
            .unwrap();
        assert!(read(home.path(), uid).is_err());
        fs::remove_file(&path).unwrap();
        assert_eq!(read(home.path(), uid).unwrap_err().kind(), io::ErrorKind::NotFound);
        let made = rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0);
        made.unwrap();
        assert_eq!(read(home.path(), uid).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
