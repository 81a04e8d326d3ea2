//! Writes a guest's memory to a file that it can be mapped from again: regions one behind the other, holes where
//! nothing is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Mapping, Mappings, Rom};

pub(super) const PAGE: usize = 4096;
/// Pages looked at in one go: their entries of the page map are 32 KiB.
const CHUNK: usize = 4096;
/// Bytes of one entry (Documentation/admin-guide/mm/pagemap.rst).
const ENTRY: usize = 8;
/// The page is in memory.
pub(super) const PRESENT: u64 = 1 << 63;
/// The page is a file's.
pub(super) const OF_FILE: u64 = 1 << 61;
/// The page is in swap.
pub(super) const SWAPPED: u64 = 1 << 62;

impl Mappings {
    /// Writes the whole memory to `image`, which is empty, and the ROM behind it. Nothing changes the memory meanwhile.
    pub(crate) fn save(&self, image: &File) -> io::Result<()> {
        let size: usize = self.mappings.iter().map(|mapping| mapping.len).sum();
        let rom = self.rom.as_ref().map_or(0, Rom::len);
        image.set_len(size as u64 + rom)?;
        let mut offset = 0;
        for mapping in &self.mappings {
            for start in (0..mapping.len / PAGE).step_by(CHUNK) {
                let pages = start..(start + CHUNK).min(mapping.len / PAGE);
                let used = self.used(mapping, offset, pages.clone())?;
                mapping.write_pages(image, offset, pages, &used)?;
            }
            offset += mapping.len as u64;
        }
        match &self.rom {
            Some(rom) => rom.save(image, offset),
            None => Ok(()),
        }
    }

    /// Which of `pages` may hold something; `offset` is where the mapping begins in an image.
    fn used(&self, mapping: &Mapping, offset: u64, pages: Range<usize>) -> io::Result<Vec<bool>> {
        let Some(pagemap) = &self.pagemap else {
            return Ok(vec![true; pages.len()]);
        };
        let entries = entries(pagemap, mapping, pages.clone())?;
        let mut used: Vec<bool> = entries.map(|entry| entry & (PRESENT | SWAPPED) != 0).collect();
        let from = offset + (pages.start * PAGE) as u64;
        if let Some(base) = &self.base {
            mark_data(base, from, &mut used)?;
        }
        if let Some(code) = &self.code {
            used[positions(from, pages.len(), &code.addresses())].fill(true);
        }
        Ok(used)
    }
}

/// What the page map says of `pages`.
pub(super) fn entries(pagemap: &File, mapping: &Mapping, pages: Range<usize>) -> io::Result<impl Iterator<Item = u64>> {
    let mut entries = vec![[0; ENTRY]; pages.len()];
    let first = mapping.address.addr().get() / PAGE + pages.start;
    pagemap.read_exact_at(entries.as_flattened_mut(), (first * ENTRY) as u64)?;
    Ok(entries.into_iter().map(u64::from_ne_bytes))
}

/// Marks the pages of `base` from `from` on that are no holes.
fn mark_data(base: &File, from: u64, used: &mut [bool]) -> io::Result<()> {
    let end = from + (used.len() * PAGE) as u64;
    let mut position = from;
    while position < end {
        let data = match rustix::fs::seek(base, SeekFrom::Data(position)) {
            Err(Errno::NXIO) => return Ok(()),
            found => found?.min(end),
        };
        let hole = if data < end {
            rustix::fs::seek(base, SeekFrom::Hole(data))?.min(end)
        } else {
            end
        };
        let found = positions(from, used.len(), &(data..hole));
        used[found].fill(true);
        position = hole.max(position + 1);
    }
    Ok(())
}

/// Which of `count` pages of an image, the first of them at `from`, have some of the bytes `part` of it.
pub(super) fn positions(from: u64, count: usize, part: &Range<u64>) -> Range<usize> {
    let page = |position: u64| usize::try_from(position / PAGE as u64).map_or(count, |page| page.min(count));
    let start = page(part.start.saturating_sub(from));
    let end = page(part.end.saturating_sub(from).next_multiple_of(PAGE as u64));
    start..end.max(start)
}

impl Mapping {
    /// Writes those of `pages` that are `used` and hold something to their places in `image`, neighbours together.
    pub(super) fn write_pages(&self, image: &File, offset: u64, pages: Range<usize>, used: &[bool]) -> io::Result<()> {
        let mut start = pages.start;
        for page in pages.clone() {
            if !used[page - pages.start] || is_empty(self.bytes(page..page + 1)) {
                self.write_run(image, offset, start..page)?;
                start = page + 1;
            }
        }
        self.write_run(image, offset, start..pages.end)
    }

    fn write_run(&self, image: &File, offset: u64, run: Range<usize>) -> io::Result<()> {
        let position = offset + (run.start * PAGE) as u64;
        image.write_all_at(self.bytes(run), position)
    }

    /// The bytes of `pages`, which no guest and no device writes meanwhile.
    fn bytes(&self, pages: Range<usize>) -> &[u8] {
        debug_assert!(pages.start <= pages.end && pages.end * PAGE <= self.len);
        let start = self.address.as_ptr().wrapping_add(pages.start * PAGE).cast_const();
        // SAFETY: the pages are part of this mapping, which is readable as long as it lives, and who saves it keeps
        // everybody from writing.
        unsafe { std::slice::from_raw_parts(start, pages.len() * PAGE) }
    }
}

fn is_empty(page: &[u8]) -> bool {
    page.as_chunks::<64>()
        .0
        .iter()
        .all(|line| line.iter().fold(0, |bits, byte| bits | byte) == 0)
}
