//! Taking an image from a registry.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use msb_image::limits::{LimitError, Limits};
use msb_image::manifest::Blob;
use msb_image::registry::{
    Credentials, CredentialsError, DownloadError, RegistryError, RegistryOptions, RemoteImage, Repository,
};

use super::import::NewImage;
use super::{ImageName, ImageRecord, Images, ImportError};
use crate::store::files::{self, FileError};

/// How an image is to be had.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// How to talk to the registry. Without credentials, those that Docker keeps for it are used.
    pub registry: RegistryOptions,
    /// How much the image may hold.
    pub limits: Limits,
}

/// Why an image was not had. Nothing of it is to be seen then; layers that came are kept for the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry does not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer does not come.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// Docker's logins.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// It is too large.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// It cannot be taken.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A file of the store could not be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a pull is doing.
#[derive(Clone, Copy, Debug)]
pub enum PullEvent {
    /// A layer of so many bytes comes, the given one of all.
    Layer {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        of: usize,
        /// Its bytes, packed.
        size: u64,
    },
    /// Bytes came, or were unpacked.
    Moved(u64),
    /// All layers are here; they are put together.
    Assembling,
}

impl Images {
    /// Gets the image `name` from its registry and takes it. What is here of it already is not asked for again.
    ///
    /// # Errors
    /// When the registry does not give it, it is damaged or too large, or the disk is full.
    pub fn pull(
        &self,
        name: &ImageName,
        mut options: PullOptions,
        progress: &dyn Fn(PullEvent),
    ) -> Result<ImageRecord, PullError> {
        let reference = name.reference();
        if options.registry.credentials.is_none() {
            options.registry.credentials = Credentials::from_docker(reference.resolve_registry())?;
        }
        let repository = Repository::new(reference, &options.registry);
        let image = repository.resolve()?;
        if image.layers.len() > options.limits.layers {
            return Err(LimitError::Layers(options.limits.layers).into());
        }
        let id = msb_image::digest::Digest::of(&image.config_json);
        if let Some(record) = self.record(&id)? {
            self.tag(&id, name).map_err(ImportError::from)?;
            return Ok(record);
        }
        self.download(&repository, &image, progress)?;
        progress(PullEvent::Assembling);
        let new = NewImage::begin(self)?;
        let opened = image.layers.iter().zip(&image.config.diff_ids);
        let opened = opened.map(|(blob, diff_id)| {
            let path = self.blob(blob);
            let file = File::open(&path).map_err(FileError::io("open", &path))?;
            Ok((file, *diff_id))
        });
        let moved = |bytes| progress(PullEvent::Moved(bytes));
        let label = name.to_string();
        let record = new.layered(
            &image.config_json,
            &image.config,
            opened,
            &label,
            options.limits,
            &moved,
        )?;
        Ok(new.publish(record, std::slice::from_ref(name))?)
    }

    fn download(
        &self,
        repository: &Repository,
        image: &RemoteImage,
        progress: &dyn Fn(PullEvent),
    ) -> Result<(), PullError> {
        files::create_private_dirs(&self.blobs())?;
        for (index, blob) in image.layers.iter().enumerate() {
            progress(PullEvent::Layer {
                number: index + 1,
                of: image.layers.len(),
                size: blob.size,
            });
            // Two processes that want one layer: the second waits, and finds it whole.
            let mut file = self.open_blob(blob)?;
            repository.download(*blob, &mut file, &|bytes| progress(PullEvent::Moved(bytes)))?;
        }
        Ok(())
    }

    fn open_blob(&self, blob: &Blob) -> Result<File, FileError> {
        let path = self.blob(blob);
        let open = || -> io::Result<File> {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(FileError::io("open", &path))
    }

    fn blob(&self, blob: &Blob) -> PathBuf {
        self.blobs().join(blob.digest.hex())
    }
}
