//! Taking an image into the store: whole, or not at all.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use msb_image::assemble::{AssembleError, Assembler};
use msb_image::config::{ParsedConfig, RunConfig};
use msb_image::digest::Digest;
use msb_image::layer::Whiteouts;
use msb_image::limits::Limits;
use msb_image::source::{self, Format, PackedImage, Source, SourceError};

use super::{ImageError, ImageName, ImageRecord, Images, ImagesLock};
use crate::store::files::{self, FileError};
use crate::store::names::SandboxId;

/// How an image is to be taken.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// What it is packed as; found out when it is not said.
    pub format: Option<Format>,
    /// Which of several images.
    pub wanted: Option<String>,
    /// What to call it, instead of what it is called where it comes from.
    pub names: Vec<ImageName>,
    /// How much it may hold.
    pub limits: Limits,
    /// Of a plain file system, which brings none: what to say of how to run it.
    pub config: RunConfig,
}

/// Why an image was not taken. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// What it comes from cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It cannot be put together.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// A file of the store could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store of images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel gives no random bytes.
    #[error("cannot get random bytes for a name")]
    Random(#[source] io::Error),
}

/// Tells how many bytes of a layer, packed, were read.
pub(super) type Progress<'a> = &'a dyn Fn(u64);

impl Images {
    /// Takes the image at `path`, `-` for standard input.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, larger than it may be, or the disk is full.
    pub fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: Progress<'_>,
    ) -> Result<ImageRecord, ImportError> {
        let new = NewImage::begin(self)?;
        let open = source::OpenOptions {
            format: options.format,
            wanted: options.wanted.as_deref(),
            scratch: new.dir.as_path(),
            limits: options.limits,
        };
        let label = path.display().to_string();
        let mut names = options.names.clone();
        let record = match source::open(path, open)? {
            Source::Image(image) => {
                if names.is_empty() {
                    names.extend(image.names.iter().filter_map(|name| name.parse().ok()));
                }
                new.packed(&image, &label, options.limits, progress)?
            }
            Source::Tar(file) => {
                let file = Watched { reader: file, progress };
                new.plain(&label, options, |assembler| {
                    assembler.layer(file, Whiteouts::Keep, None)
                })?
            }
            Source::Directory(path) => new.plain(&label, options, |assembler| assembler.directory(&path))?,
        };
        new.publish(record, &names)
    }

    /// Removes what dead processes left behind.
    pub(super) fn sweep(&self, _guard: &ImagesLock) -> Result<(), FileError> {
        for name in files::list(&self.root)? {
            let path = self.root.join(&name);
            if name.starts_with(".del-") || (name.starts_with(".new-") && is_abandoned(&path)) {
                files::remove_dir_optional(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether nobody holds the lock of a directory that was to become an image.
fn is_abandoned(dir: &Path) -> bool {
    // Without a lock, its maker died before it had one: it is made under the lock of the store.
    File::open(dir.join("lock")).map_or(true, |lock| lock.try_lock_shared().is_ok())
}

/// An image that is being made. Dropped before it is published, it is gone.
#[derive(Debug)]
pub(super) struct NewImage<'a> {
    images: &'a Images,
    pub(super) dir: PathBuf,
    _lock: File,
}

impl<'a> NewImage<'a> {
    pub(super) fn begin(images: &'a Images) -> Result<Self, ImportError> {
        let name = SandboxId::random().map_err(ImportError::Random)?;
        let dir = images.root.join(format!(".new-{name}"));
        let guard = images.lock()?;
        images.sweep(&guard)?;
        files::create_private_dirs(&dir)?;
        let path = dir.join("lock");
        let lock = files::create_log(&path)?;
        lock.lock().map_err(FileError::io("lock", &path))?;
        Ok(Self {
            images,
            dir,
            _lock: lock,
        })
    }

    /// Puts an image in layers together.
    pub(super) fn packed(
        &self,
        image: &PackedImage,
        label: &str,
        limits: Limits,
        progress: Progress<'_>,
    ) -> Result<ImageRecord, ImportError> {
        let layers = image.layers().map(|(layer, digest)| Ok((layer?, digest)));
        self.layered(&image.config_json, &image.config, layers, label, limits, progress)
    }

    /// Puts layers on each other.
    pub(super) fn layered<R: Read>(
        &self,
        config_json: &[u8],
        config: &ParsedConfig,
        layers: impl Iterator<Item = Result<(R, Digest), ImportError>>,
        label: &str,
        limits: Limits,
        progress: Progress<'_>,
    ) -> Result<ImageRecord, ImportError> {
        let mut assembler = Assembler::new(self.create_erofs()?, limits);
        for layer in layers {
            let (reader, digest) = layer?;
            assembler.layer(Watched { reader, progress }, Whiteouts::Apply, Some(digest))?;
        }
        let id = Digest::of(config_json);
        self.finish(assembler, id, label, config.run.clone(), config.diff_ids.clone())
    }

    /// Takes a file system that is no image, as its only layer.
    fn plain(
        &self,
        label: &str,
        options: &ImportOptions,
        fill: impl FnOnce(&mut Assembler) -> Result<Digest, AssembleError>,
    ) -> Result<ImageRecord, ImportError> {
        let mut assembler = Assembler::new(self.create_erofs()?, options.limits);
        let layer = fill(&mut assembler)?;
        let config = options.config.clone();
        let id = Digest::of(&files::to_json(&(&layer, &config)));
        self.finish(assembler, id, label, config, vec![layer])
    }

    fn finish(
        &self,
        assembler: Assembler,
        id: Digest,
        label: &str,
        config: RunConfig,
        layers: Vec<Digest>,
    ) -> Result<ImageRecord, ImportError> {
        let file = assembler.finish(&id)?;
        file.sync_all()
            .map_err(FileError::io("write to the disk", &self.erofs_path()))?;
        self.record(id, label, config, layers)
    }

    /// What there is to know of it, once its file system is written.
    pub(super) fn record(
        &self,
        id: Digest,
        label: &str,
        config: RunConfig,
        layers: Vec<Digest>,
    ) -> Result<ImageRecord, ImportError> {
        let path = self.erofs_path();
        let size = std::fs::metadata(&path).map_err(FileError::io("look at", &path))?.len();
        Ok(ImageRecord {
            id,
            created_at: Timestamp::now(),
            source: label.chars().filter(|c| !c.is_control()).collect(),
            size,
            config,
            layers,
            origin: None,
        })
    }

    pub(super) fn images(&self) -> &'a Images {
        self.images
    }

    pub(super) fn create_erofs(&self) -> Result<File, FileError> {
        let path = self.erofs_path();
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&path).map_err(FileError::io("create", &path))
    }

    pub(super) fn erofs_path(&self) -> PathBuf {
        self.dir.join("image.erofs")
    }

    /// Has the image appear under its id and names. One that is there already stays, and is the same.
    pub(super) fn publish(self, record: ImageRecord, names: &[ImageName]) -> Result<ImageRecord, ImportError> {
        let path = self.dir.join("image.json");
        files::write_private(&path, &files::to_json(&record))?;
        files::sync(&path)?;
        let guard = self.images.lock()?;
        let place = self.images.image_dir(&record.id);
        if let Some(there) = self.images.record(&record.id)? {
            self.images.tag_locked(&guard, &there.id, names)?;
            return Ok(there);
        }
        files::remove_optional(&self.dir.join("lock"))?;
        files::sync(&self.dir)?;
        std::fs::rename(&self.dir, &place).map_err(FileError::io("create", &place))?;
        let finish = || {
            files::sync(&self.images.root)?;
            self.images.tag_locked(&guard, &record.id, names)
        };
        finish().inspect_err(|_| {
            // Why it was not taken is what the caller must hear of.
            let _ = self.images.remove_locked(&guard, &record.id);
        })?;
        Ok(record)
    }
}

impl Drop for NewImage<'_> {
    fn drop(&mut self) {
        // Nothing is there any more when it was published; what cannot be removed, the next import sweeps.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Tells what is read through it.
struct Watched<'a, R> {
    reader: R,
    progress: Progress<'a>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}
