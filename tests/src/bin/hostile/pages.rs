//! Pages of this program, with the guest-physical addresses by which devices know them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

pub(crate) const PAGE: usize = 4096;
const COUNT: usize = 64;
/// Bits of an entry of /proc/PID/pagemap that hold the frame number (proc(5)).
const FRAME: u64 = (1 << 55) - 1;

pub(crate) struct Pages {
    start: NonNull<u8>,
    frames: Vec<u64>,
}

impl Pages {
    pub(crate) fn lock() -> io::Result<Self> {
        let len = COUNT * PAGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
        // SAFETY: a new mapping touches no other.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start: NonNull<u8> = NonNull::new(mapped.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let frames = (0..COUNT).map(|index| {
            let mut entry = [0; 8];
            let page = start.as_ptr() as usize / PAGE + index;
            pagemap.read_exact_at(&mut entry, page as u64 * 8)?;
            Ok(u64::from_le_bytes(entry) & FRAME)
        });
        Ok(Self {
            start,
            frames: frames.collect::<io::Result<_>>()?,
        })
    }

    pub(crate) fn count(&self) -> u64 {
        COUNT as u64
    }

    /// Where devices find page `index`.
    pub(crate) fn physical(&self, index: u64) -> u64 {
        self.frames[usize::try_from(index).expect("an index") % COUNT] * PAGE as u64
    }

    /// Writes `bytes` at `offset` of page `index`.
    pub(crate) fn put(&self, index: u64, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE);
        let page = self
            .start
            .as_ptr()
            .wrapping_add(usize::try_from(index).expect("an index") % COUNT * PAGE);
        for (at, byte) in (offset..).zip(bytes) {
            // SAFETY: the byte lies in the mapping, by the assertion above; devices may write there, too.
            unsafe { page.wrapping_add(at).write_volatile(*byte) };
        }
    }
}
