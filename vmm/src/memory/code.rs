//! The kernel's code in guest memory, from the kernel's file.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::image::{OF_FILE, PAGE, PRESENT, SWAPPED, entries, positions};
use super::{Mappings, MemoryError};
use crate::arch::kernel_code::KernelCode;

impl Mappings {
    /// Puts the code of `kernel` that guests can share, if it has any, into its place in low memory, which nobody uses yet:
    /// read from the file when it is touched, and copied should the guest write to it. What is no kernel at all is for its
    /// loader to say. Nobody changes or shortens the file as long as the mappings are.
    ///
    /// Returns which bytes of the file are in their place.
    ///
    /// # Errors
    /// When the host refuses.
    pub(crate) fn share_code(&mut self, kernel: &File) -> Result<Range<u64>, MemoryError> {
        match KernelCode::find(kernel) {
            Ok(Some(code)) if self.map_code(&code, kernel)? => Ok(code.file),
            _ => Ok(0..0),
        }
    }

    /// The same in memory that was saved with the code `saved`, if `kernel` has just that.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn share_saved_code(&mut self, saved: &KernelCode, kernel: &File) -> Result<(), MemoryError> {
        if KernelCode::find(kernel).is_ok_and(|present| present.as_ref() == Some(saved)) {
            self.map_code(saved, kernel)?;
        }
        Ok(())
    }

    /// Returns whether low memory has such a place.
    fn map_code(&mut self, code: &KernelCode, kernel: &File) -> Result<bool, MemoryError> {
        let low = &self.mappings[0];
        let Range { start, end } = code.addresses();
        if end > low.len as u64 {
            return Ok(false);
        }
        let place = |address| usize::try_from(address).expect("low memory ends below 4 GiB");
        low.copy_on_write(place(start)..place(end), kernel, code.file.start)
            .map_err(MemoryError::KernelCode)?;
        self.code = Some(code.clone());
        Ok(true)
    }

    /// The kernel's code, if it is mapped from the kernel's file, which can be told from others, and the guest has not
    /// changed it.
    ///
    /// # Errors
    /// When the host does not tell.
    pub(crate) fn unchanged_code(&self) -> io::Result<Option<&KernelCode>> {
        let (Some(code), Some(pagemap)) = (&self.code, &self.pagemap) else {
            return Ok(None);
        };
        let low = &self.mappings[0];
        let pages = positions(0, low.len / PAGE, &code.addresses());
        let is_copy = |entry: u64| entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT;
        let is_changed = entries(pagemap, low, pages)?.any(is_copy);
        Ok(Some(code).filter(|code| !is_changed && !code.build_id.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{HUGE_PAGE, MIN_MIB, allocate, restore};

    #[test]
    fn code_of_a_kernel_is_shared_saved_with_the_memory_and_copied_where_a_guest_writes() {
        let file = tempfile::tempfile().unwrap();
        let huge = HUGE_PAGE as u64;
        file.write_all_at(&vec![7; HUGE_PAGE], huge).unwrap();
        let code = |address| KernelCode {
            address,
            file: huge..2 * huge,
            build_id: vec![1],
        };
        let (memory, mut mappings) = allocate(MIN_MIB, None).unwrap();
        let end = u64::from(MIN_MIB) << 20;
        assert!(!mappings.map_code(&code(end), &file).unwrap(), "behind the memory");
        assert!(mappings.map_code(&code(huge), &file).unwrap());
        assert_eq!(memory.read_obj::<u8>(GuestAddress(huge)).unwrap(), 7);
        assert_eq!(mappings.unchanged_code().unwrap(), Some(&code(huge)));
        memory.write_obj(8u8, GuestAddress(huge + 4096)).unwrap();
        assert_eq!(mappings.unchanged_code().unwrap(), None);

        // Most of the code has not been touched when this is saved.
        let image = tempfile::tempfile().unwrap();
        mappings.save(&image).unwrap();
        let (restored, _restored_mappings) = restore(MIN_MIB, 0, image, None).unwrap();
        for (place, expected) in [(0, 0), (huge, 7), (huge + 4096, 8), (2 * huge - 1, 7), (2 * huge, 0)] {
            for memory in [&memory, &restored] {
                assert_eq!(
                    memory.read_obj::<u8>(GuestAddress(place)).unwrap(),
                    expected,
                    "{place:#x}"
                );
            }
        }
        let mut byte = [0];
        file.read_exact_at(&mut byte, huge + 4096).unwrap();
        assert_eq!(byte, [7]);
    }
}
