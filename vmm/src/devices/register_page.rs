//! Registers as the guest reads them: memory that KVM maps into it, read-only.
//!
//! A load stays in the guest, however often its driver asks. A store leaves it, because the memory is read-only, and
//! reaches the device, which keeps the page up to date.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fmt, io};

use vm_memory::{MmapRegion, VolatileMemory as _, VolatileSlice};

/// Bytes of a page, which hold the registers of one device.
pub(crate) const PAGE: usize = 0x1000;

/// The registers of devices whose windows are side by side. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct RegisterPages {
    /// The guest-physical address of the first.
    pub(crate) address: u64,
    region: Arc<MmapRegion>,
}

/// The registers of one device. Cloning shares them.
#[derive(Clone)]
pub struct RegisterPage {
    pages: Arc<MmapRegion>,
    start: usize,
}

impl RegisterPages {
    /// Those of `windows` windows, one at least, from the guest's `address` on; all zero.
    ///
    /// # Errors
    /// When the host has no memory.
    pub(crate) fn new(address: u64, windows: usize) -> io::Result<Self> {
        let region = MmapRegion::new(windows.max(1) * PAGE).map_err(io::Error::other)?;
        Ok(Self {
            address,
            region: Arc::new(region),
        })
    }

    /// Those of the window with this index.
    pub(crate) fn page(&self, index: usize) -> Option<RegisterPage> {
        let start = index.checked_mul(PAGE)?;
        (start < self.region.size()).then(|| RegisterPage {
            pages: Arc::clone(&self.region),
            start,
        })
    }

    /// The host's address of the first, and bytes of all.
    pub(crate) fn range(&self) -> (*mut u8, usize) {
        (self.region.as_ptr(), self.region.size())
    }
}

impl RegisterPage {
    /// One that no guest sees, all zero.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn new() -> io::Result<Self> {
        let pages = RegisterPages::new(0, 1)?;
        Ok(pages.page(0).expect("there is one"))
    }

    /// The register at `offset`, a multiple of four in the page.
    pub(crate) fn word(&self, offset: u32) -> &AtomicU32 {
        let at = self.start + offset as usize % PAGE;
        self.pages
            .get_atomic_ref(at)
            .expect("registers are aligned words of the page")
    }

    /// Sets the register at `offset`, a multiple of four in the page.
    pub(crate) fn set(&self, offset: u32, value: u32) {
        self.word(offset).store(value.to_le(), Ordering::SeqCst);
    }

    /// What a load of `data.len()` bytes at `offset` gives; zeros behind the page.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(piece) = self.piece(offset, data.len()) {
            piece.copy_to(data);
        }
    }

    /// Replaces what there is from `offset` on; what would lie behind the page is left out.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if let Some(piece) = self.piece(offset, data.len()) {
            piece.copy_from(data);
        }
    }

    /// `len` bytes at `offset`, as far as they are in the page.
    fn piece(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok().filter(|offset| *offset < PAGE)?;
        self.pages.get_slice(self.start + offset, len.min(PAGE - offset)).ok()
    }
}

impl fmt::Debug for RegisterPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisterPage({:#x})", self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_share_registers() {
        let pages = RegisterPages::new(0, 2).unwrap();
        let [first, second] = [0, 1].map(|index| pages.page(index).unwrap());
        first.set(0xffc, 1);
        second.write(0xffe, &[2; 8]);
        let mut word = [0xee; 4];
        first.read(0xffc, &mut word);
        assert_eq!(word, [1, 0, 0, 0]);
        second.read(0xffe, &mut word);
        assert_eq!(word, [2, 2, 0, 0], "there is nothing behind a page");
        assert!(pages.page(2).is_none());
    }
}
