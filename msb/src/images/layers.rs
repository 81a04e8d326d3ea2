//! Images that are made of others: layers that were taken in a guest, kept by what made them, and images with such layers
//! on top.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use msb_image::assemble::{AssembleError, Assembler};
use msb_image::config::RunConfig;
use msb_image::digest::{Digest, Hasher};
use msb_image::layer::Whiteouts;
use msb_image::limits::{LimitError, Limits};
use serde::{Deserialize, Serialize};

use super::import::NewImage;
use super::{ImageError, ImageName, ImageRecord, Images, ImportError};
use crate::sandbox::clone;
use crate::store::files::{self, FileError};

/// How an image was made of another one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The image below.
    pub base: Digest,
    /// What the image below was called.
    pub from: String,
    /// The steps that made it, as the template says them.
    pub steps: Vec<String>,
    /// Digests of the layers on top of the image below, lowest first.
    pub layers: Vec<Digest>,
}

/// Which layer a step gave, by the key of the step.
type Steps = BTreeMap<Digest, Digest>;

impl Images {
    /// The layer that the step with this key gave, if it is still here.
    pub(crate) fn cached_layer(&self, key: &Digest) -> Result<Option<Digest>, FileError> {
        let layer = self.steps()?.get(key).copied();
        Ok(layer.filter(|layer| self.layer_path(layer).exists()))
    }

    /// Begins to keep a layer of at most `limit` bytes.
    pub(crate) fn new_layer(&self, limit: u64) -> Result<NewLayer<'_>, ImportError> {
        let new = NewImage::begin(self)?;
        let path = new.dir.join("layer.tar");
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        Ok(NewLayer {
            file: file.map_err(FileError::io("create", &path))?,
            new,
            path,
            hasher: Hasher::new(),
            left: limit,
            limit,
        })
    }

    /// Makes an image of `base` with the layers of `origin` on top, and gives it names.
    ///
    /// # Errors
    /// When a layer is not sound, the image is larger than it may be, or the disk is full.
    pub(crate) fn derive(
        &self,
        base: &ImageRecord,
        origin: Origin,
        config: RunConfig,
        names: &[ImageName],
        limits: Limits,
    ) -> Result<ImageRecord, ImportError> {
        let id = Digest::of(&files::to_json(&(&base.id, &origin.layers, &config)));
        if let Some(record) = self.record(&id)? {
            for name in names {
                self.tag(&id, name)?;
            }
            return Ok(record);
        }
        let new = NewImage::begin(self)?;
        if !self.link_twin(&new, base, &origin)? {
            self.assemble(&new, base, &origin.layers, &id, limits)?;
        }
        let layers = base.layers.iter().chain(&origin.layers).copied().collect();
        let record = new.record(id, &format!("template on {}", origin.from), config, layers)?;
        let record = ImageRecord {
            origin: Some(origin),
            ..record
        };
        new.publish(record, names)
    }

    /// Takes the file system of an image that has the same files. Returns whether there is one.
    fn link_twin(&self, new: &NewImage<'_>, base: &ImageRecord, origin: &Origin) -> Result<bool, ImageError> {
        let is_twin = |record: &ImageRecord| {
            let other = record.origin.as_ref();
            other.is_some_and(|other| (other.base, &other.layers) == (origin.base, &origin.layers))
        };
        let twin = match origin.layers.is_empty() {
            true => Some(base.id),
            false => {
                let mut images = self.all()?.into_iter().map(|image| image.record);
                images.find(is_twin).map(|record| record.id)
            }
        };
        // One that is removed meanwhile, or a file system without links: then it is made anew.
        Ok(twin.is_some_and(|id| std::fs::hard_link(self.erofs(&id), new.erofs_path()).is_ok()))
    }

    fn assemble(
        &self,
        new: &NewImage<'_>,
        base: &ImageRecord,
        layers: &[Digest],
        id: &Digest,
        limits: Limits,
    ) -> Result<(), ImportError> {
        let (file, path) = (new.create_erofs()?, self.erofs(&base.id));
        let below = File::open(&path).map_err(FileError::io("open", &path))?;
        clone::clone(&below, &file).map_err(FileError::io("copy", &path))?;
        let mut assembler = Assembler::on(file, limits)?;
        for layer in layers {
            let path = self.layer_path(layer);
            let reader = File::open(&path).map_err(FileError::io("open", &path))?;
            assembler.layer(reader, Whiteouts::Apply, Some(*layer))?;
        }
        let file = assembler.finish(id)?;
        Ok(file
            .sync_all()
            .map_err(FileError::io("write to the disk", &new.erofs_path()))?)
    }

    fn layer_path(&self, layer: &Digest) -> PathBuf {
        self.blobs().join(layer.hex())
    }

    fn steps(&self) -> Result<Steps, FileError> {
        Ok(files::read_json(&self.steps_path())?.unwrap_or_default())
    }

    pub(super) fn steps_path(&self) -> PathBuf {
        self.root.join("steps.json")
    }
}

/// A layer that comes. Dropped before it is finished, it is gone.
#[derive(Debug)]
pub(crate) struct NewLayer<'a> {
    new: NewImage<'a>,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    left: u64,
    limit: u64,
}

impl NewLayer<'_> {
    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(AssembleError::Limit(LimitError::Bytes(self.limit)))?;
        self.hasher.update(bytes);
        Ok(self.file.write_all(bytes).map_err(FileError::io("write", &self.path))?)
    }

    /// Keeps it as what the step with this key gives.
    pub(crate) fn keep(self, key: &Digest) -> Result<Digest, ImportError> {
        let images = self.new.images();
        let layer = self.hasher.finish();
        let place = images.layer_path(&layer);
        let keep = || -> io::Result<()> {
            self.file.sync_all()?;
            std::fs::rename(&self.path, &place)
        };
        files::create_private_dirs(&images.blobs())?;
        keep().map_err(FileError::io("create", &place))?;
        files::sync(&images.blobs())?;
        let _guard = images.lock()?;
        let mut steps = images.steps()?;
        steps.insert(*key, layer);
        files::replace_json(&images.steps_path(), &steps)?;
        files::sync(&images.steps_path())?;
        Ok(layer)
    }
}
