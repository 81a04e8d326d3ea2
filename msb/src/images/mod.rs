//! Images on this host: each stored once, as a file system that all sandboxes of it share.
//!
//! ```text
//! $MSB_HOME/images/
//!   lock               flock: exclusive for every change, shared while a sandbox of an image is made
//!   refs.json          names and the ids they stand for
//!   ID/                ID: the 64 digits of the image's digest
//!     image.erofs      the files: read-only, no block of it ever changes
//!     image.json       what is known of it
//!   .new-N/            being made; its maker holds a lock in it, and without one a dead process left it
//!   blobs/             layers from registries, packed as they came, where partial ones are resumed; and layers of templates
//!   steps.json         which of these a step of a template gave
//! ```
//!
//! An image appears by the rename of `.new-N`, after all of it is on the disk.

mod import;
mod layers;
mod names;
mod pull;
mod refs;
mod remove;

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use msb_image::config::RunConfig;
use msb_image::digest::Digest;
use serde::{Deserialize, Serialize};

pub use import::{ImportError, ImportOptions};
pub use layers::Origin;
pub use names::{ImageName, NameError};
pub use pull::{PullError, PullEvent, PullOptions};
pub use remove::{Pruned, Removed};

use crate::store::Store;
use crate::store::files::{self, FileError};
use crate::store::layout::Layout;

/// The shortest beginning of an id that stands for it.
const MIN_PREFIX: usize = 4;

/// Why an image cannot be found or changed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing has that name or id.
    #[error("there is no image '{0}'; `msb image ls` lists those there are, `msb image import` takes another")]
    Unknown(String),
    /// More than one id begins so.
    #[error("more than one image id begins with '{0}'; give more digits")]
    Ambiguous(String),
    /// Sandboxes are made from it.
    #[error("image {id} is used by {}; remove {} first", sandboxes.join(", "), if sandboxes.len() == 1 { "it" } else { "them" })]
    InUse {
        /// The image, shortly.
        id: String,
        /// Who uses it.
        sandboxes: Vec<String>,
    },
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The sandboxes could not be looked at.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

/// What is known of an image: the content of `image.json`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    /// The digest of its configuration, or for a plain file system one that stands for its files.
    pub id: Digest,
    /// When it was imported.
    pub created_at: Timestamp,
    /// What it was made from.
    pub source: String,
    /// The size of its file system, in bytes.
    pub size: u64,
    /// What it says of how to run it.
    pub config: RunConfig,
    /// Digests of its layers, unpacked, lowest first.
    pub layers: Vec<Digest>,
    /// How it was made of another image here, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

impl ImageRecord {
    /// The first twelve digits of its id.
    pub fn short_id(&self) -> String {
        short(&self.id)
    }
}

/// The first twelve digits of an id.
pub fn short(id: &Digest) -> String {
    id.hex()[..12].to_owned()
}

/// An image with what may change of it.
#[derive(Clone, Debug)]
pub struct Image {
    /// What is known of it.
    pub record: ImageRecord,
    /// What it is called.
    pub names: Vec<ImageName>,
    /// What its file system takes on this disk, in bytes: without its holes.
    pub disk_usage: u64,
}

/// The images in `$MSB_HOME`. Cheap to make: it holds paths only.
#[derive(Clone, Debug)]
pub struct Images {
    root: PathBuf,
}

/// Keeps images from being removed, or all of them from being changed. Ends when dropped.
#[derive(Debug)]
pub(crate) struct ImagesLock(#[expect(dead_code, reason = "held, not read")] File);

impl Images {
    /// The images of a store. Touches no file.
    pub fn new(layout: &Layout) -> Self {
        Self {
            root: layout.home.join("images"),
        }
    }

    /// Finds an image by its name, its id or the beginning of its id.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        let id = self.resolve(reference)?;
        self.record(&id)?.ok_or_else(|| ImageError::Unknown(reference.into()))
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn all(&self) -> Result<Vec<Image>, ImageError> {
        let refs = refs::read(&self.refs_path())?;
        let mut images = Vec::new();
        for id in self.ids()? {
            // One that is removed meanwhile is left out.
            if let Some(record) = self.record(&id)? {
                let named = refs.iter().filter(|(_, named)| **named == id);
                images.push(Image {
                    names: named.map(|(name, _)| name.clone()).collect(),
                    disk_usage: disk_usage(&self.erofs(&id)),
                    record,
                });
            }
        }
        images.sort_by_key(|image| std::cmp::Reverse(image.record.created_at));
        Ok(images)
    }

    /// Gives an image a name, in addition to those it has; another image that has the name loses it.
    ///
    /// # Errors
    /// When the image is gone or the names cannot be written.
    pub fn tag(&self, id: &Digest, name: &ImageName) -> Result<(), ImageError> {
        let guard = self.lock()?;
        if self.record(id)?.is_none() {
            return Err(ImageError::Unknown(short(id)));
        }
        Ok(self.tag_locked(&guard, id, std::slice::from_ref(name))?)
    }

    /// Gives it all of these names, or none.
    fn tag_locked(&self, _guard: &ImagesLock, id: &Digest, names: &[ImageName]) -> Result<(), FileError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut refs = refs::read(&self.refs_path())?;
        refs.extend(names.iter().map(|name| (name.clone(), *id)));
        refs::write(&self.refs_path(), &refs)
    }

    /// The file system of an image.
    pub fn erofs(&self, id: &Digest) -> PathBuf {
        self.image_dir(id).join("image.erofs")
    }

    /// Keeps all images where they are until the lock is dropped.
    pub(crate) fn lock_shared(&self) -> Result<ImagesLock, FileError> {
        self.locked(File::lock_shared)
    }

    fn lock(&self) -> Result<ImagesLock, FileError> {
        self.locked(File::lock)
    }

    fn locked(&self, lock: impl FnOnce(&File) -> io::Result<()>) -> Result<ImagesLock, FileError> {
        files::create_private_dirs(&self.root)?;
        let path = self.root.join("lock");
        let open = || {
            let mut options = File::options();
            options.create(true).truncate(false).write(true).mode(0o600);
            let file = options.open(&path)?;
            lock(&file)?;
            Ok(file)
        };
        Ok(ImagesLock(open().map_err(FileError::io("lock", &path))?))
    }

    fn resolve(&self, reference: &str) -> Result<Digest, ImageError> {
        let refs = refs::read(&self.refs_path())?;
        if let Some(id) = reference
            .parse()
            .ok()
            .and_then(|name: ImageName| refs.get(&name).copied())
        {
            return Ok(id);
        }
        let prefix = reference.strip_prefix("sha256:").unwrap_or(reference);
        let is_prefix =
            (MIN_PREFIX..=64).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_prefix {
            return Err(ImageError::Unknown(reference.into()));
        }
        let mut matches = self.ids()?.into_iter().filter(|id| id.hex().starts_with(prefix));
        match (matches.next(), matches.next()) {
            (Some(id), None) => Ok(id),
            (None, _) => Err(ImageError::Unknown(reference.into())),
            (Some(_), Some(_)) => Err(ImageError::Ambiguous(reference.into())),
        }
    }

    fn record(&self, id: &Digest) -> Result<Option<ImageRecord>, FileError> {
        files::read_json(&self.image_dir(id).join("image.json"))
    }

    fn ids(&self) -> Result<Vec<Digest>, FileError> {
        let names = files::list(&self.root)?;
        Ok(names.iter().filter_map(|name| Digest::from_hex(name)).collect())
    }

    fn image_dir(&self, id: &Digest) -> PathBuf {
        self.root.join(id.hex())
    }

    fn refs_path(&self) -> PathBuf {
        self.root.join("refs.json")
    }

    /// Layers as registries gave them.
    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }
}

impl Store {
    /// The images that its sandboxes are made from.
    pub fn images(&self) -> Images {
        Images::new(self.layout())
    }
}

/// What a file takes on the disk, in bytes.
fn disk_usage(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.blocks() * 512)
}

#[cfg(test)]
mod tests;
