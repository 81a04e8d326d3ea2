//! Memory that a guest only reads, and that all guests share which have the same.

use std::fs::File;
use std::io;

use rustix::mm::{MapFlags, ProtFlags};

use super::image::PAGE;
use super::{Mapping, MemoryError};
use crate::arch::layout;

/// A file, or a part of one, mapped read-only.
#[derive(Debug)]
pub(crate) struct Rom(Mapping);

impl Rom {
    /// Maps the whole `file`.
    ///
    /// # Errors
    /// When its size is none that a ROM has, or the host refuses.
    pub(super) fn of_file(file: &File) -> Result<Self, MemoryError> {
        let len = file.metadata().map_err(MemoryError::Rom)?.len();
        Self::of_part(file, 0, len)
    }

    /// Maps `len` bytes of `file` from `offset` on, which is a multiple of a page.
    ///
    /// # Errors
    /// As above.
    pub(super) fn of_part(file: &File, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let size = usize::try_from(len).ok();
        let size = size.filter(|size| len <= layout::ROM_MAX && size.is_multiple_of(PAGE) && *size > 0);
        let mapping = Mapping::new(size.ok_or(MemoryError::RomSize(len))?).map_err(MemoryError::Rom)?;
        mapping
            .replace(0..mapping.len, file, offset, ProtFlags::READ, MapFlags::SHARED)
            .map_err(MemoryError::Rom)?;
        Ok(Self(mapping))
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> u64 {
        self.0.len as u64
    }

    /// Where it is in this process.
    pub(crate) fn address(&self) -> *const u8 {
        self.0.address.as_ptr().cast_const()
    }

    /// Writes it to `image` at `offset`.
    pub(super) fn save(&self, image: &File, offset: u64) -> io::Result<()> {
        let pages = 0..self.0.len / PAGE;
        self.0
            .write_pages(image, offset, pages.clone(), &vec![true; pages.len()])
    }
}
