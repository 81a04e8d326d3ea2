//! Removing a tree.

use std::path::{Path, PathBuf};

use msb_ssh::sftp::{FileKind, LIST_LIMIT, SftpClient, SftpError};

/// The longest path of a guest, in bytes: `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// Removes what is at `path`, with all that is in it. A directory is removed when it is met the second time, empty.
pub(super) async fn remove(sftp: &SftpClient, path: &Path) -> Result<(), SftpError> {
    if sftp.lstat(path).await?.kind() != FileKind::Directory {
        return sftp.remove_file(path).await;
    }
    let mut left: Vec<(PathBuf, bool)> = vec![(path.into(), false)];
    while let Some((directory, is_emptied)) = left.pop() {
        if is_emptied {
            sftp.remove_dir(&directory).await?;
            continue;
        }
        left.push((directory.clone(), true));
        // One page after the other: a directory may have any number of entries.
        let mut entries = sftp.read_dir(&directory).await?;
        while let Some(entry) = entries.next().await? {
            let path = directory.join(&entry.name);
            match entry.attributes.kind() {
                FileKind::Directory => push(&mut left, path)?,
                _ => sftp.remove_file(&path).await?,
            }
        }
        entries.close().await?;
    }
    Ok(())
}

/// A guest may tell of directories without end.
fn push(left: &mut Vec<(PathBuf, bool)>, path: PathBuf) -> Result<(), SftpError> {
    if path.as_os_str().len() > MAX_PATH {
        let what = "a longer path than there can be";
        let operation = "remove";
        return Err(SftpError::Nonsense { operation, path, what });
    }
    if left.len() >= LIST_LIMIT {
        return Err(SftpError::TooLarge {
            path,
            limit: LIST_LIMIT,
            unit: "directories that are to be removed",
            instead: "`rm -r` in the sandbox",
        });
    }
    left.push((path, false));
    Ok(())
}
