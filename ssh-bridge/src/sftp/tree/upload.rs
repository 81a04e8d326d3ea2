//! From this machine to a guest.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, ReadDir};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use rustix::fs::OFlags;
use tokio::io::AsyncReadExt;

use super::walk::{Files, Level, Step, deeper, walk};
use super::{Transfer, TreeError, blocking};
use crate::sftp::{FileAttributes, OpenOptions, StatusCode};

/// Bytes read at once.
const CHUNK: usize = 1024 * 1024;

/// Names read at once.
const NAMES: usize = 1000;

/// What the owner of a directory needs to fill it.
const OWNER: u32 = 0o700;

pub(super) async fn run(copy: &Arc<Transfer>, local: &Path, remote: &Path) -> Result<(), TreeError> {
    let path = local.to_owned();
    let found = blocking(move || fs::metadata(&path).map_err(TreeError::local("look at", &path))).await?;
    if found.is_dir() {
        let root = Directory::open(copy, local.to_owned(), remote.to_owned(), found, 0).await?;
        return walk(copy, root).await;
    }
    if !found.is_file() {
        return Err(TreeError::Special(local.to_owned()));
    }
    file(copy, local.to_owned(), remote, OFlags::empty()).await
}

/// A directory here and the one in the guest.
struct Directory {
    local: PathBuf,
    remote: PathBuf,
    found: Metadata,
    /// None while names are read from it, and when that failed.
    listing: Option<ReadDir>,
    names: VecDeque<OsString>,
    /// The bits that its owner has only while it is filled.
    lent: u32,
    files: Files,
    depth: usize,
}

impl Directory {
    async fn open(
        copy: &Transfer,
        local: PathBuf,
        remote: PathBuf,
        found: Metadata,
        depth: usize,
    ) -> Result<Self, TreeError> {
        let path = local.clone();
        let listing = blocking(move || fs::read_dir(&path).map_err(TreeError::local("list", &path))).await?;
        Ok(Self {
            lent: make_directory(copy, &remote, found.mode()).await?,
            local,
            remote,
            found,
            listing: Some(listing),
            names: VecDeque::new(),
            files: Files::new(),
            depth,
        })
    }

    /// The next name; none at the end.
    async fn next(&mut self) -> Result<Option<OsString>, TreeError> {
        if self.names.is_empty()
            && let Some(mut listing) = self.listing.take()
        {
            let path = self.local.clone();
            let read = blocking(move || {
                let names = listing.by_ref().take(NAMES).map(|entry| Ok(entry?.file_name()));
                let names = names.collect::<io::Result<VecDeque<_>>>();
                Ok((listing, names.map_err(TreeError::local("list", &path))?))
            });
            let (listing, names) = read.await?;
            (self.listing, self.names) = (Some(listing), names);
        }
        Ok(self.names.pop_front())
    }

    async fn copy(&mut self, copy: &Arc<Transfer>, name: OsString) -> Result<Step<Self>, TreeError> {
        let (from, to) = (self.local.join(&name), self.remote.join(&name));
        let path = from.clone();
        let found = blocking(move || fs::symlink_metadata(&path).map_err(TreeError::local("look at", &path))).await?;
        if found.is_dir() {
            let depth = deeper(self.depth, &from)?;
            return Self::open(copy, from, to, found, depth).await.map(Step::Below);
        } else if found.is_symlink() {
            symlink(copy, from, &to).await?;
        } else if found.is_file() {
            let (copy, room) = (Arc::clone(copy), copy.room().await);
            self.files.spawn(async move {
                let _room = room;
                file(&copy, from, &to, OFlags::NOFOLLOW).await
            });
        } else {
            return Err(TreeError::Special(from));
        }
        Ok(Step::Copied)
    }
}

impl Level for Directory {
    async fn step(&mut self, copy: &Arc<Transfer>) -> Result<Step<Self>, TreeError> {
        match self.next().await {
            Ok(Some(name)) => self.copy(copy, name).await,
            Ok(None) => Ok(Step::End(Ok(()))),
            Err(error) => Ok(Step::End(Err(error))),
        }
    }

    fn files(&mut self) -> &mut Files {
        &mut self.files
    }

    async fn finish(self, copy: &Transfer) -> Result<(), TreeError> {
        finish_directory(copy, &self.remote, &self.found, self.lent).await
    }
}

/// Makes the directory, or takes the one that is there. Returns the bits that its owner has only while it is filled.
async fn make_directory(copy: &Transfer, remote: &Path, mode: u32) -> Result<u32, TreeError> {
    let attributes = FileAttributes::with_mode(mode & 0o777 | OWNER);
    let Err(error) = copy.sftp.mkdir_with(remote, &attributes).await else {
        return Ok(OWNER & !mode);
    };
    // The protocol has no word for a file that exists.
    if error.status().is_some_and(|status| status.code == StatusCode::Failure)
        && copy.sftp.stat(remote).await.is_ok_and(|found| found.is_directory())
    {
        return Ok(0);
    }
    Err(error.into())
}

async fn finish_directory(copy: &Transfer, remote: &Path, found: &Metadata, lent: u32) -> Result<(), TreeError> {
    if copy.options.preserve {
        copy.sftp.set_attributes(remote, &preserved(found)).await?;
    } else if lent != 0 {
        let mode = copy.sftp.stat(remote).await?.mode().unwrap_or(0);
        copy.sftp.set_permissions(remote, mode & !lent).await?;
    }
    Ok(())
}

/// Makes a link, in place of a file or link that is there.
async fn symlink(copy: &Transfer, from: PathBuf, to: &Path) -> Result<(), TreeError> {
    let target = blocking(move || fs::read_link(&from).map_err(TreeError::local("read the link", &from))).await?;
    let Err(error) = copy.sftp.symlink(&target, to).await else {
        return Ok(());
    };
    let is_failure = error.status().is_some_and(|status| status.code == StatusCode::Failure);
    if is_failure && copy.sftp.remove_file(to).await.is_ok() {
        return Ok(copy.sftp.symlink(&target, to).await?);
    }
    Err(error.into())
}

async fn file(copy: &Transfer, from: PathBuf, to: &Path, flags: OFlags) -> Result<(), TreeError> {
    let path = from.clone();
    let (file, found) = blocking(move || open(&path, flags)).await?;
    let options = OpenOptions::new().write().create().truncate();
    let options = options.mode(found.mode() & 0o777);
    let mut writer = copy.sftp.open_file(to, &options).await?.into_writer();
    copy.file_begins(&from, found.len());
    let mut file = tokio::fs::File::from_std(file);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let read = file.read_buf(&mut buffer).await;
        if read.map_err(TreeError::local("read", &from))? == 0 {
            break;
        }
        let chunk = buffer.split().freeze();
        let length = chunk.len();
        writer.write_chunk(chunk).await?;
        copy.moved(length);
    }
    writer.finish().await?;
    if copy.options.preserve {
        writer.file().set_attributes(&preserved(&found)).await?;
    }
    writer.close().await?;
    copy.file_ends();
    Ok(())
}

/// Opens a regular file. One that became a FIFO meanwhile is not waited for.
fn open(path: &Path, flags: OFlags) -> Result<(File, Metadata), TreeError> {
    let flags = (flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)
        .map_err(TreeError::local("open", path))?;
    let found = file.metadata().map_err(TreeError::local("look at", path))?;
    if !found.is_file() {
        return Err(TreeError::Special(path.to_owned()));
    }
    Ok((file, found))
}

/// Mode and times. The protocol's times are those between 1970 and 2106.
fn preserved(found: &Metadata) -> FileAttributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    FileAttributes {
        times: Some((seconds(found.atime()), seconds(found.mtime()))),
        ..FileAttributes::with_mode(found.mode())
    }
}
