//! From layers to a file system, in one pass over their bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::content::Spool;
use crate::digest::{Digest, HashingReader};
use crate::directory::{self, DirectoryError};
use crate::erofs::{self, ReadError, WriteError};
use crate::layer::{self, DecompressError, Decompressed, LayerError, Whiteouts};
use crate::limits::{Budget, LimitError, Limits};
use crate::tree::Tree;

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A layer is packed with something else.
    #[error("cannot unpack layer {number}")]
    Decompress {
        /// Which, from 1.
        number: usize,
        /// Why not.
        source: DecompressError,
    },
    /// A layer cannot be taken.
    #[error("cannot take layer {number}")]
    Layer {
        /// Which, from 1.
        number: usize,
        /// Why not.
        source: LayerError,
    },
    /// A layer is not the one that the image names.
    #[error("layer {number} is damaged: it has the digest {found}, and the image's configuration names {expected}")]
    Digest {
        /// Which, from 1.
        number: usize,
        /// Of what was read.
        found: Digest,
        /// What it should be.
        expected: Digest,
    },
    /// There are too many.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A directory cannot be taken.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The image below cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file system cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A file system that is being put together.
#[derive(Debug)]
pub struct Assembler {
    tree: Tree,
    spool: Spool,
    budget: Budget,
    layers: usize,
}

impl Assembler {
    /// Writes to the empty `file`.
    pub fn new(file: File, limits: Limits) -> Self {
        Self {
            tree: Tree::new(limits.entries),
            spool: Spool::new(file),
            budget: Budget::new(limits),
            layers: 0,
        }
    }

    /// Changes the image in `file`, which was written here: layers go on top of what it has. Its contents stay where they
    /// are, so that a copy which shares blocks with its original goes on sharing them.
    ///
    /// # Errors
    /// When it cannot be read, or is larger than `limits` say.
    pub fn on(file: File, limits: Limits) -> Result<Self, AssembleError> {
        let (mut tree, mut budget) = (Tree::new(limits.entries), Budget::new(limits));
        let blocks = erofs::read(&file, &mut tree, &mut budget)?;
        let inline = tree.inline_bytes();
        Ok(Self {
            tree,
            spool: Spool::behind(file, blocks, inline),
            budget,
            layers: 0,
        })
    }

    /// Puts a layer on top, packed or not, and returns the digest of it unpacked. With `expected`, that must be it.
    ///
    /// # Errors
    /// When the layer is damaged or too large, or the image cannot be written; the rest is of no use then.
    pub fn layer(
        &mut self,
        reader: impl Read,
        whiteouts: Whiteouts,
        expected: Option<Digest>,
    ) -> Result<Digest, AssembleError> {
        self.layers += 1;
        let number = self.layers;
        let most = self.budget.limits().layers;
        if number > most {
            return Err(LimitError::Layers(most).into());
        }
        let plain = Decompressed::new(reader).map_err(|source| AssembleError::Decompress { number, source })?;
        let mut plain = HashingReader::new(plain);
        layer::apply(&mut plain, whiteouts, &mut self.tree, &mut self.spool, &mut self.budget)
            .map_err(|source| AssembleError::Layer { number, source })?;
        let found = plain.finish();
        match expected {
            Some(expected) if expected != found => Err(AssembleError::Digest {
                number,
                found,
                expected,
            }),
            _ => Ok(found),
        }
    }

    /// Takes a directory of the host as it is, and returns a digest that stands for it.
    ///
    /// # Errors
    /// When a file cannot be read, it is too large, or the image cannot be written.
    pub fn directory(&mut self, path: &Path) -> Result<Digest, AssembleError> {
        Ok(directory::add(path, &mut self.tree, &mut self.spool, &mut self.budget)?)
    }

    /// Writes the file system; `id` becomes its UUID.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self, id: &Digest) -> Result<File, AssembleError> {
        let uuid = *id.bytes().first_chunk().expect("a digest is longer");
        Ok(erofs::write(&self.tree, self.spool, uuid)?)
    }
}
