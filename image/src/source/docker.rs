//! What `docker save` and `podman save` write: a `manifest.json` that names the other files.

use serde::Deserialize;

use super::{Files, PackedImage, SourceError, choose};

const MANIFEST: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn open(files: Files, wanted: Option<&str>) -> Result<PackedImage, SourceError> {
    let json = files.read(MANIFEST)?;
    let images: Vec<Image> = serde_json::from_slice(&json).map_err(|source| SourceError::Malformed {
        name: MANIFEST.into(),
        source,
    })?;
    let named = images
        .into_iter()
        .map(|mut image| (image.repo_tags.take().unwrap_or_default(), image));
    let (names, image) = choose(named.collect(), wanted)?;
    let config = files.read(&image.config)?;
    PackedImage::new(names, config, image.layers, files)
}
