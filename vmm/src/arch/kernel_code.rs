//! The code of a kernel that no guest changes, and that guests can share therefore.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use elf::abi::{PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use elf::segment::ProgramHeader;
use elf::{ElfStream, ParseError};
use serde::{Deserialize, Serialize};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::memory::HUGE_PAGE;

/// A segment of a kernel's ELF file that is executed and never written to, in whole huge pages.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelCode {
    /// Where the guest has it.
    pub(crate) address: u64,
    /// Its bytes in the file.
    pub(crate) file: Range<u64>,
    /// What the linker calls a kernel with these contents (GNU build ID); nothing if it was not asked to.
    pub(crate) build_id: Vec<u8>,
}

impl KernelCode {
    /// Finds it in the kernel `file`, whose program headers mark it: Linux's own say of all code that it is never written
    /// to, which is not so, but have no whole huge pages of it.
    ///
    /// # Errors
    /// When the file is no ELF file, or cannot be read.
    pub(crate) fn find(file: &File) -> Result<Option<Self>, ParseError> {
        let mut stream = ElfStream::<LittleEndian, _>::open_stream(file)?;
        let segments = stream.segments().clone();
        let found = segments.iter().find(|segment| {
            let places = [segment.p_paddr, segment.p_offset, segment.p_filesz];
            segment.p_type == PT_LOAD
                && segment.p_flags & (PF_R | PF_W | PF_X) == PF_R | PF_X
                && segment.p_filesz == segment.p_memsz
                && segment.p_filesz > 0
                && places.iter().all(|place| place.is_multiple_of(HUGE_PAGE as u64))
        });
        let Some(segment) = found else {
            return Ok(None);
        };
        let len = file.metadata()?.len();
        let end = segment.p_offset.checked_add(segment.p_filesz);
        let Some(end) = end.filter(|end| *end <= len) else {
            return Ok(None);
        };
        let build_id = match segments.iter().find(|segment| segment.p_type == PT_NOTE) {
            Some(notes) => build_id(&mut stream, notes)?,
            None => Vec::new(),
        };
        Ok(Some(Self {
            address: segment.p_paddr,
            file: segment.p_offset..end,
            build_id,
        }))
    }

    /// Its addresses in the guest.
    pub(crate) fn addresses(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.len())
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> u64 {
        self.file.end - self.file.start
    }
}

fn build_id(stream: &mut ElfStream<LittleEndian, &File>, segment: &ProgramHeader) -> Result<Vec<u8>, ParseError> {
    let mut notes = stream.segment_data_as_notes(segment)?;
    Ok(notes
        .find_map(|note| match note {
            Note::GnuBuildId(id) => Some(id.0.to_vec()),
            _ => None,
        })
        .unwrap_or_default())
}

/// A kernel's file for a loader that finds some of its bytes in their place in guest memory already.
#[derive(Debug)]
pub(super) struct PartlyMapped<'a> {
    file: &'a mut File,
    mapped: Range<u64>,
}

impl<'a> PartlyMapped<'a> {
    /// The bytes `mapped` of `file` are in their place.
    pub(super) fn new(file: &'a mut File, mapped: Range<u64>) -> Self {
        Self { file, mapped }
    }
}

impl Read for PartlyMapped<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for PartlyMapped<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl ReadVolatile for PartlyMapped<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let position = self.file.stream_position().map_err(VolatileMemoryError::IOError)?;
        if !self.mapped.contains(&position) {
            return self.file.read_volatile(buffer);
        }
        let skipped = (self.mapped.end - position).min(buffer.len() as u64);
        self.file
            .seek(SeekFrom::Start(position + skipped))
            .map_err(VolatileMemoryError::IOError)?;
        Ok(usize::try_from(skipped).expect("no longer than the buffer"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    const HUGE: u64 = HUGE_PAGE as u64;

    /// An ELF file of `len` bytes with these segments: flags, place in memory, place in the file, bytes.
    fn kernel(segments: &[(u32, u64, u64, u64)], len: u64) -> File {
        let mut headers = b"\x7fELF\x02\x01\x01".to_vec();
        headers.resize(16, 0);
        // An executable for x86-64, version 1, with its program headers behind this one and no sections.
        for (bytes, value) in [
            (2, 2),
            (2, 62),
            (4, 1),
            (8, 0x100_0000),
            (8, 64),
            (8, 0),
            (4, 0),
            (2, 64),
            (2, 56),
        ] {
            headers.extend_from_slice(&u64::to_le_bytes(value)[..bytes]);
        }
        headers.extend_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        headers.extend_from_slice(&[64, 0, 0, 0, 0, 0]);
        for (flags, address, offset, len) in segments {
            headers.extend_from_slice(&PT_LOAD.to_le_bytes());
            headers.extend_from_slice(&flags.to_le_bytes());
            for value in [*offset, *address, *address, *len, *len, HUGE] {
                headers.extend_from_slice(&value.to_le_bytes());
            }
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&headers, 0).unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn it_is_the_segment_that_is_executed_and_not_written_to() {
        let segments = [
            (PF_R | PF_W | PF_X, 8 * HUGE, HUGE, HUGE),
            (PF_R | PF_X, 9 * HUGE, 2 * HUGE, 3 * HUGE),
            (PF_R | PF_W, 12 * HUGE, 5 * HUGE, HUGE),
        ];
        let found = KernelCode::find(&kernel(&segments, 6 * HUGE)).unwrap();
        let expected = KernelCode {
            address: 9 * HUGE,
            file: 2 * HUGE..5 * HUGE,
            build_id: Vec::new(),
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn nothing_is_shared_of_code_beside_something_else_or_cut_off() {
        let code = PF_R | PF_X;
        for (segment, len) in [
            ((code, 8 * HUGE, HUGE, HUGE + 4096), 4 * HUGE),
            ((code, 8 * HUGE + 4096, HUGE, HUGE), 4 * HUGE),
            ((code, 8 * HUGE, 4096, HUGE), 4 * HUGE),
            ((code, 8 * HUGE, HUGE, 0), 4 * HUGE),
            ((code, 8 * HUGE, HUGE, 2 * HUGE), 2 * HUGE),
            ((code, 8 * HUGE, u64::MAX - HUGE + 1, HUGE), 4 * HUGE),
        ] {
            assert_eq!(KernelCode::find(&kernel(&[segment], len)).unwrap(), None, "{segment:?}");
        }
    }

    #[test]
    fn what_is_mapped_is_not_read_and_the_rest_is() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 64], 0).unwrap();
        file.rewind().unwrap();
        let mut memory = [0u8; 64];
        let mut partly = PartlyMapped::new(&mut file, 16..48);
        let volatile = VolatileSlice::from(&mut memory[..]);
        for (from, len) in [(0, 16), (16, 16), (32, 16), (48, 16)] {
            partly
                .read_exact_volatile(&mut volatile.subslice(from, len).unwrap())
                .unwrap();
        }
        assert_eq!(partly.stream_position().unwrap(), 64);
        let expected: Vec<u8> = (0..64)
            .map(|byte| if (16..48).contains(&byte) { 0 } else { 7 })
            .collect();
        assert_eq!(memory.as_slice(), expected);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), elf in any::<bool>()) {
            let file = if elf { kernel(&[(PF_R | PF_X, HUGE, HUGE, HUGE)], 2 * HUGE) } else { tempfile::tempfile().unwrap() };
            file.write_all_at(&bytes, if elf { 16 } else { 0 }).unwrap();
            let _ = KernelCode::find(&file);
        }
    }
}
