//! Removing images and what nobody needs any more.

use std::collections::BTreeMap;

use msb_image::digest::Digest;

use super::{ImageError, ImageName, ImageRecord, Images, ImagesLock, disk_usage, refs, short};
use crate::Sandbox;
use crate::store::files::{self, FileError};
use crate::store::{Store, StoreError};

/// What [`Images::remove`] did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Removed {
    /// The image has other names.
    Name(ImageName),
    /// The image is gone.
    Image(Digest),
}

/// What [`Images::prune`] did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pruned {
    /// Images that are gone.
    pub images: Vec<Digest>,
    /// Bytes that the disk has again.
    pub bytes: u64,
}

impl Images {
    /// Removes a name, and with the last one the image; an id stands for the image with all its names.
    ///
    /// # Errors
    /// When there is none, or sandboxes are made from it.
    pub fn remove(&self, store: &Store, reference: &str) -> Result<Removed, ImageError> {
        let guard = self.lock()?;
        let id = self.resolve(reference)?;
        let mut refs = refs::read(&self.refs_path())?;
        let name = reference
            .parse::<ImageName>()
            .ok()
            .filter(|name| refs.contains_key(name));
        if let Some(name) = name
            && refs.values().filter(|named| **named == id).count() > 1
        {
            refs.remove(&name);
            refs::write(&self.refs_path(), &refs)?;
            return Ok(Removed::Name(name));
        }
        if let Some(sandboxes) = users(store)?.remove(&id) {
            let id = short(&id);
            return Err(ImageError::InUse { id, sandboxes });
        }
        self.remove_locked(&guard, &id)?;
        Ok(Removed::Image(id))
    }

    /// Removes images without a name, with `all` also those with one, that no sandbox is made from; and the layers that
    /// were kept to import images or to build templates again.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&self, store: &Store, all: bool) -> Result<Pruned, ImageError> {
        let guard = self.lock()?;
        self.sweep(&guard)?;
        let (users, refs) = (users(store)?, refs::read(&self.refs_path())?);
        let mut pruned = Pruned::default();
        for id in self.ids()? {
            let is_named = refs.values().any(|named| *named == id);
            if users.contains_key(&id) || (is_named && !all) {
                continue;
            }
            pruned.bytes += disk_usage(&self.erofs(&id));
            self.remove_locked(&guard, &id)?;
            pruned.images.push(id);
        }
        // Without their layers, steps are run again.
        files::remove_optional(&self.steps_path())?;
        for blob in files::list(&self.blobs())? {
            let path = self.blobs().join(blob);
            pruned.bytes += disk_usage(&path);
            files::remove_optional(&path)?;
        }
        Ok(pruned)
    }

    /// Removes an image that nobody gave a name and no sandbox is made from.
    pub(crate) fn remove_unnamed(&self, store: &Store, id: &Digest) -> Result<(), ImageError> {
        let guard = self.lock()?;
        let is_named = refs::read(&self.refs_path())?.values().any(|named| named == id);
        if !is_named && !users(store)?.contains_key(id) {
            self.remove_locked(&guard, id)?;
        }
        Ok(())
    }

    /// Its names go first: one never leads to half an image.
    pub(super) fn remove_locked(&self, _guard: &ImagesLock, id: &Digest) -> Result<(), FileError> {
        let mut refs = refs::read(&self.refs_path())?;
        let before = refs.len();
        refs.retain(|_, named| named != id);
        if refs.len() != before {
            refs::write(&self.refs_path(), &refs)?;
        }
        let (place, removed) = (self.image_dir(id), self.root.join(format!(".del-{}", id.hex())));
        std::fs::rename(&place, &removed).map_err(FileError::io("remove", &place))?;
        files::remove_dir_optional(&removed)
    }

    /// The image, kept where it is until a sandbox of it is recorded: nobody removes one meanwhile.
    pub(crate) fn pin(&self, id: &Digest) -> Result<(ImageRecord, ImagesLock), ImageError> {
        let lock = self.lock_shared()?;
        let record = self.record(id)?.ok_or_else(|| ImageError::Unknown(short(id)))?;
        Ok((record, lock))
    }
}

/// The sandboxes of each image. One whose configuration cannot be read keeps all images.
fn users(store: &Store) -> Result<BTreeMap<Digest, Vec<String>>, StoreError> {
    let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    for sandbox in Sandbox::all(store)? {
        let sandbox = sandbox?;
        if let Some(image) = &sandbox.config().spec.image {
            users.entry(image.id).or_default().push(sandbox.label().to_owned());
        }
    }
    Ok(users)
}
