//! Layers: tar archives put on top of each other.

mod decompress;
pub mod index;
mod pax;
mod tar;

use std::collections::BTreeMap;
use std::io::{self, Read};

pub use decompress::{DecompressError, Decompressed};
pub use tar::TarError;
pub(crate) use tar::is_kept;

use crate::content::{ContentError, Segment, Spool};
use crate::limits::{Budget, LimitError};
use crate::tree::path::Shown;
use crate::tree::{Kind, Tree, TreeError};
use tar::{Entry, EntryKind, TarReader};

/// What begins the name of a file that takes away one of a lower layer (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";

/// The name of the file that takes away all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What begins the names that AUFS kept for itself.
const AUFS: &[u8] = b".wh..wh.";

/// Why a layer cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no sound archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry fits nowhere.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It is too large.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A file's content.
    #[error("'{path}'")]
    Content {
        /// The file.
        path: Shown,
        /// What failed.
        source: ContentError,
    },
    /// What comes behind the archive cannot be read: a checksum, most of all.
    #[error("cannot read to the end of the layer")]
    Rest(#[source] io::Error),
}

/// What an archive's files named `.wh.` mean.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whiteouts {
    /// What they mean in a layer of an image.
    Apply,
    /// They are files like others.
    Keep,
}

/// Puts the tar archive in `reader` on top of `tree`, its contents into `spool`, and reads to the end of `reader`.
///
/// # Errors
/// When the archive is not sound, too large, or the image cannot be written. The tree is of no use then.
pub fn apply(
    reader: &mut impl Read,
    whiteouts: Whiteouts,
    tree: &mut Tree,
    spool: &mut Spool,
    budget: &mut Budget,
) -> Result<(), LayerError> {
    tree.begin_layer();
    let mut archive = TarReader::new(reader);
    while let Some(entry) = archive.next()? {
        budget.entry(entry.metadata_size())?;
        if whiteouts == Whiteouts::Apply && apply_whiteout(&entry.path, tree)? {
            continue;
        }
        let Entry { path, kind, attributes } = entry;
        let kind = match kind {
            EntryKind::HardLink(target) => {
                tree.link(&path, &target)?;
                continue;
            }
            // Overlayfs takes this device for a whiteout of its own, so no system can have one.
            EntryKind::CharDevice(device) if device.major == 0 && device.minor == 0 => continue,
            EntryKind::CharDevice(device) => Kind::CharDevice(device),
            EntryKind::BlockDevice(device) => Kind::BlockDevice(device),
            EntryKind::Directory => Kind::Directory(BTreeMap::new()),
            EntryKind::Symlink(target) => Kind::Symlink(target.into()),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::File { size, segments } => {
                budget.file(size)?;
                let segments = segments.unwrap_or_else(|| vec![Segment { offset: 0, len: size }]);
                let content = spool.add(size, &segments, &mut archive.data());
                Kind::File(content.map_err(|source| LayerError::Content {
                    path: Shown::new(&path),
                    source,
                })?)
            }
        };
        tree.insert(&path, attributes, kind)?;
    }
    // What is there counts: it is unpacked, too.
    let mut rest = reader.take(budget.bytes_left().saturating_add(1));
    let behind = io::copy(&mut rest, &mut io::sink()).map_err(LayerError::Rest)?;
    Ok(budget.file(behind)?)
}

/// Whether `path` is that of a whiteout, which is then applied.
fn apply_whiteout(path: &[u8], tree: &mut Tree) -> Result<bool, TreeError> {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let start = trimmed
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    let (directory, name) = trimmed.split_at(start);
    match name {
        OPAQUE => tree.make_opaque(directory)?,
        name if name.starts_with(AUFS) => {}
        name => match name.strip_prefix(WHITEOUT) {
            Some(hidden) => tree.whiteout(&[directory, hidden].concat())?,
            None => return Ok(false),
        },
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
