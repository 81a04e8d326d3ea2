//! How much an image may hold. What is beyond is refused, however the image says it is packed.

use serde::{Deserialize, Serialize};

/// The bounds of one import. Memory grows with `entries` only: contents go through to the disk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Limits {
    /// Entries of all layers together, those that later layers replace included.
    pub entries: u64,
    /// Bytes of all files of all layers together, unpacked.
    pub bytes: u64,
    /// Bytes of all names, link targets and extended attributes together.
    pub metadata: u64,
    /// Layers.
    pub layers: usize,
}

impl Limits {
    /// What a tar archive of an image may have that is as large as it may be, in bytes: its contents and names, and four
    /// blocks for each entry.
    pub fn archive_bytes(&self) -> u64 {
        let blocks = self.entries.saturating_mul(4 * 512);
        self.bytes.saturating_add(self.metadata).saturating_add(blocks)
    }
}

impl Default for Limits {
    /// A million entries, 64 GiB, 512 MiB of names and attributes, 512 layers.
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            bytes: 64 << 30,
            metadata: 512 << 20,
            layers: 512,
        }
    }
}

/// The image is larger than it may be.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// Too many entries.
    #[error("it has more than {0} entries")]
    Entries(u64),
    /// Too much to unpack.
    #[error("its files have more than {} MiB unpacked", .0 >> 20)]
    Bytes(u64),
    /// Too many names and attributes.
    #[error("its names and attributes have more than {} MiB", .0 >> 20)]
    Metadata(u64),
    /// Too many layers.
    #[error("it has more than {0} layers")]
    Layers(usize),
}

/// What an import has used of its limits.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    entries: u64,
    bytes: u64,
    metadata: u64,
}

impl Budget {
    /// Nothing used yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: 0,
            bytes: 0,
            metadata: 0,
        }
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts an entry with so many bytes of names and attributes.
    ///
    /// # Errors
    /// When that is too much.
    pub fn entry(&mut self, metadata: usize) -> Result<(), LimitError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LimitError::Entries(self.limits.entries));
        }
        self.metadata(metadata)
    }

    /// Counts so many bytes more of names and attributes.
    ///
    /// # Errors
    /// When that is too much.
    pub fn metadata(&mut self, metadata: usize) -> Result<(), LimitError> {
        self.metadata = self.metadata.saturating_add(metadata as u64);
        if self.metadata > self.limits.metadata {
            return Err(LimitError::Metadata(self.limits.metadata));
        }
        Ok(())
    }

    /// How many more bytes files may have.
    pub fn bytes_left(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.bytes)
    }

    /// Counts a file's size, holes included.
    ///
    /// # Errors
    /// When that is too much.
    pub fn file(&mut self, size: u64) -> Result<(), LimitError> {
        self.bytes = self.bytes.saturating_add(size);
        match self.bytes > self.limits.bytes {
            true => Err(LimitError::Bytes(self.limits.bytes)),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_allowed_entry_and_byte_pass_and_the_next_do_not() {
        let mut budget = Budget::new(Limits {
            entries: 2,
            bytes: 10,
            metadata: 100,
            layers: 1,
        });
        assert_eq!((budget.entry(50), budget.entry(50)), (Ok(()), Ok(())));
        assert_eq!(budget.entry(0), Err(LimitError::Entries(2)));
        assert_eq!(budget.file(10), Ok(()));
        assert_eq!(budget.file(u64::MAX), Err(LimitError::Bytes(10)));
    }
}
