//! OCI image layouts (OCI image specification, image-layout.md).

use super::{Files, PackedImage, SourceError, choose};
use crate::digest::Digest;
use crate::manifest::{Blob, Entry, Manifest};

/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 4;

pub(super) fn open(files: Files, wanted: Option<&str>) -> Result<PackedImage, SourceError> {
    let Manifest::Index(entries) = Manifest::parse(&files.read("index.json")?)? else {
        return Err(SourceError::NoImage);
    };
    let named = entries
        .into_iter()
        .map(|Entry { blob, name }| (name.into_iter().collect(), blob));
    let (names, mut blob) = choose(named.collect(), wanted)?;
    for _ in 0..MAX_DEPTH {
        match Manifest::parse(&read(&files, blob)?)? {
            // For this machine, one is as good as another.
            Manifest::Index(entries) => blob = entries.first().ok_or(SourceError::NoImage)?.blob,
            Manifest::Image { config, layers } => {
                let config = read(&files, config)?;
                let layers = layers.iter().map(|layer| name_of(layer.digest)).collect();
                return PackedImage::new(names, config, layers, files);
            }
        }
    }
    Err(SourceError::NoImage)
}

fn read(files: &Files, blob: Blob) -> Result<Vec<u8>, SourceError> {
    let name = name_of(blob.digest);
    let bytes = files.read(&name)?;
    match Digest::of(&bytes) {
        found if found != blob.digest => Err(SourceError::Damaged { name, found }),
        _ => Ok(bytes),
    }
}

fn name_of(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
