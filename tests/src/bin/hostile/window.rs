//! The registers of a device, or of none.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
pub(crate) const SIZE: u64 = 0x1000;

pub(crate) struct Window(NonNull<u8>);

impl Window {
    pub(crate) fn map(physical: u64) -> io::Result<Self> {
        let memory = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let offset = i64::try_from(physical).map_err(io::Error::other)?;
        let size = usize::try_from(SIZE).map_err(io::Error::other)?;
        // SAFETY: a new mapping touches no other.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                protection,
                libc::MAP_SHARED,
                memory.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(mapped.cast())
            .map(Self)
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    pub(crate) fn is_device(&self) -> bool {
        self.read(0) == MAGIC && self.read(8) != 0
    }

    /// Reads the register at `offset`, which is aligned.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        // SAFETY: the register lies in the mapping, which is never unmapped.
        unsafe { self.register(offset).read_volatile() }
    }

    /// Writes the register at `offset`, which is aligned.
    pub(crate) fn write(&self, offset: u64, value: u32) {
        // SAFETY: as for reading; what a device does with it is the question that is asked here.
        unsafe { self.register(offset).write_volatile(value) }
    }

    /// Writes a single byte or two, where a driver writes words.
    pub(crate) fn write_narrow(&self, offset: u64, value: u16, two: bool) {
        let address = self
            .0
            .as_ptr()
            .wrapping_add(usize::try_from(offset % (SIZE - 4)).unwrap_or(0) & !1);
        if two {
            // SAFETY: the two bytes lie in the mapping, aligned.
            unsafe { address.cast::<u16>().write_volatile(value) }
        } else {
            // SAFETY: the byte lies in the mapping.
            unsafe { address.write_volatile(value.to_le_bytes()[0]) }
        }
    }

    fn register(&self, offset: u64) -> *mut u32 {
        let offset = usize::try_from(offset % SIZE).unwrap_or(0) & !3;
        self.0.as_ptr().wrapping_add(offset).cast()
    }
}
