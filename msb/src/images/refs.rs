//! Which name stands for which image.

use std::collections::BTreeMap;
use std::path::Path;

use msb_image::digest::Digest;

use super::ImageName;
use crate::store::files::{self, FileError};

pub(super) type Refs = BTreeMap<ImageName, Digest>;

pub(super) fn read(path: &Path) -> Result<Refs, FileError> {
    Ok(files::read_json(path)?.unwrap_or_default())
}

/// Replaces the names and waits until they are on the disk.
pub(super) fn write(path: &Path, refs: &Refs) -> Result<(), FileError> {
    files::replace_json(path, refs)?;
    files::sync(path)?;
    path.parent().map_or(Ok(()), files::sync)
}
