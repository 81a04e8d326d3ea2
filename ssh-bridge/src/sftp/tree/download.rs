//! From a guest to this machine.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::local::{self, LocalDir};
use super::walk::{Files, Level, Step, deeper, walk};
use super::{DOWNLOADED_MODE, Transfer, TreeError, blocking};
use crate::sftp::{DirEntry, FileAttributes, FileKind, OpenOptions, SftpDirectory};

/// Modes where the guest tells none.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

/// Where a file goes.
enum Target {
    Path(PathBuf),
    Entry(LocalDir, OsString),
}

impl Target {
    fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Entry(directory, name) => directory.path().join(name),
        }
    }

    fn create(&self, mode: u32) -> Result<File, TreeError> {
        match self {
            Self::Path(path) => local::create_file(path, mode),
            Self::Entry(directory, name) => directory.create_file(name, mode),
        }
    }
}

pub(super) async fn run(copy: &Arc<Transfer>, remote: &Path, local: &Path) -> Result<(), TreeError> {
    let attributes = copy.sftp.stat(remote).await?;
    match attributes.kind() {
        FileKind::Directory => {
            let (path, mode) = (local.to_owned(), mode_or(&attributes, DIRECTORY_MODE));
            let target = blocking(move || LocalDir::first(&path, mode)).await?;
            let root = Directory::open(copy, remote.to_owned(), target, attributes, 0).await?;
            walk(copy, root).await
        }
        FileKind::File | FileKind::Unknown => {
            let target = Target::Path(local.to_owned());
            file(copy, remote, target, &attributes).await
        }
        FileKind::Symlink | FileKind::Special => Err(TreeError::Special(remote.to_owned())),
    }
}

/// A directory in the guest and the one here.
struct Directory {
    remote: PathBuf,
    local: LocalDir,
    attributes: FileAttributes,
    listing: SftpDirectory,
    files: Files,
    depth: usize,
}

impl Directory {
    async fn open(
        copy: &Transfer,
        remote: PathBuf,
        local: LocalDir,
        attributes: FileAttributes,
        depth: usize,
    ) -> Result<Self, TreeError> {
        Ok(Self {
            listing: copy.sftp.read_dir(&remote).await?,
            remote,
            local,
            attributes,
            files: Files::new(),
            depth,
        })
    }

    async fn copy(&mut self, copy: &Arc<Transfer>, entry: DirEntry) -> Result<Step<Self>, TreeError> {
        let from = self.remote.join(&entry.name);
        let DirEntry { name, attributes } = known(copy, &from, entry).await?;
        let local = self.local.clone();
        match attributes.kind() {
            FileKind::Directory => {
                let (depth, mode) = (deeper(self.depth, &from)?, mode_or(&attributes, DIRECTORY_MODE));
                let target = blocking(move || local.enter(&name, mode)).await?;
                return Self::open(copy, from, target, attributes, depth).await.map(Step::Below);
            }
            FileKind::Symlink => {
                let target = copy.sftp.read_link(&from).await?;
                blocking(move || local.symlink(&target, &name)).await?;
            }
            FileKind::File => {
                let (copy, room) = (Arc::clone(copy), copy.room().await);
                self.files.spawn(async move {
                    let _room = room;
                    file(&copy, &from, Target::Entry(local, name), &attributes).await
                });
            }
            FileKind::Special | FileKind::Unknown => return Err(TreeError::Special(from)),
        }
        Ok(Step::Copied)
    }
}

impl Level for Directory {
    async fn step(&mut self, copy: &Arc<Transfer>) -> Result<Step<Self>, TreeError> {
        match self.listing.next().await {
            Ok(Some(entry)) => self.copy(copy, entry).await,
            Ok(None) => Ok(Step::End(Ok(()))),
            Err(error) => Ok(Step::End(Err(error.into()))),
        }
    }

    fn files(&mut self) -> &mut Files {
        &mut self.files
    }

    async fn finish(self, copy: &Transfer) -> Result<(), TreeError> {
        let (preserve, Self { local, attributes, .. }) = (copy.options.preserve, self);
        blocking(move || local.finish(&attributes, preserve)).await
    }
}

/// The entry with its kind, also from a server that lists names only.
async fn known(copy: &Transfer, from: &Path, entry: DirEntry) -> Result<DirEntry, TreeError> {
    match entry.attributes.kind() {
        FileKind::Unknown => Ok(DirEntry {
            attributes: copy.sftp.lstat(from).await?,
            ..entry
        }),
        _ => Ok(entry),
    }
}

async fn file(copy: &Transfer, from: &Path, target: Target, attributes: &FileAttributes) -> Result<(), TreeError> {
    let opened = copy.sftp.open_file(from, &OpenOptions::new().read()).await?;
    copy.file_begins(from, attributes.size.unwrap_or(0));
    // Files that the guest's kernel makes up say that they are empty.
    let mut reader = match attributes.size {
        None | Some(0) => opened.into_reader(),
        Some(size) => opened.into_reader_of(size),
    };
    let (path, mode) = (target.path(), mode_or(attributes, FILE_MODE));
    let created = blocking(move || target.create(mode)).await?;
    let mut created = tokio::fs::File::from_std(created);
    let write_error = || TreeError::local("write", &path);
    while let Some(chunk) = reader.next_chunk().await? {
        created.write_all(&chunk).await.map_err(write_error())?;
        copy.moved(chunk.len());
    }
    created.flush().await.map_err(write_error())?;
    reader.close().await?;
    if copy.options.preserve {
        let (created, attributes) = (created.into_std().await, attributes.clone());
        let preserved = tokio::task::spawn_blocking(move || local::preserve(&created, &attributes)).await?;
        preserved.map_err(TreeError::local("change the attributes of", &path))?;
    }
    copy.file_ends();
    Ok(())
}

fn mode_or(attributes: &FileAttributes, default: u32) -> u32 {
    attributes.mode().unwrap_or(default) & DOWNLOADED_MODE
}
