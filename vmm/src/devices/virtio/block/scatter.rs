//! One direction of a descriptor chain as the segments that `preadv(2)` and `pwritev(2)` take.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::memory::GuestMemory;

/// What one system call takes (`UIO_MAXIOV`).
const MAX_SEGMENTS: usize = 1024;

/// Bytes of guest memory, which the guest can change at any time.
///
/// Invariant: each segment lies in memory that stays mapped for `'a`.
#[derive(Debug)]
pub(super) struct Scatter<'a> {
    segments: Vec<libc::iovec>,
    len: usize,
    memory: PhantomData<&'a GuestMemory>,
}

/// Segments without a chain, kept so that the next chain allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Spare(Vec<libc::iovec>);

// SAFETY: the list is empty between chains; it carries capacity, not pointers.
unsafe impl Send for Spare {}

impl<'a> Scatter<'a> {
    /// The descriptors of `chain` that the device may write (`writable`) or read, in order.
    ///
    /// `None` when one lies outside guest memory or there are more than a system call takes.
    pub(super) fn of_chain(
        memory: &'a GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        writable: bool,
        spare: &mut Spare,
    ) -> Option<Self> {
        let mut scatter = Self {
            segments: std::mem::take(&mut spare.0),
            len: 0,
            memory: PhantomData,
        };
        for descriptor in chain.filter(|descriptor| descriptor.is_write_only() == writable) {
            let len = usize::try_from(descriptor.len()).ok()?;
            for slice in memory.get_slices(descriptor.addr(), len) {
                scatter.push(&slice.ok()?)?;
            }
        }
        Some(scatter)
    }

    /// Gives the list back for the next chain.
    pub(super) fn recycle(mut self, spare: &mut Spare) {
        self.segments.clear();
        spare.0 = self.segments;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes the first `N` bytes away from the front and returns a copy of them.
    pub(super) fn take_front<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if self.len < N {
            return None;
        }
        let mut filled = 0;
        while filled < N {
            let slice = self.slice(0);
            let count = slice.copy_to(&mut bytes[filled..]);
            self.advance(count);
            filled += count;
        }
        Some(bytes)
    }

    /// Takes the last byte away.
    pub(super) fn take_last_byte(&mut self) -> Option<VolatileSlice<'a>> {
        while self.segments.last()?.iov_len == 0 {
            self.segments.pop();
        }
        let last = self.segments.last_mut()?;
        last.iov_len -= 1;
        self.len -= 1;
        let byte = last.iov_base.wrapping_byte_add(last.iov_len);
        // SAFETY: the byte lies in memory that stays mapped for `'a` (the type's invariant), and `VolatileSlice` is
        // made for memory that others change.
        Some(unsafe { VolatileSlice::new(byte.cast(), 1) })
    }

    /// Copies `bytes` to the front, as far as there is room.
    pub(super) fn copy_from(&mut self, mut bytes: &[u8]) {
        for index in 0..self.segments.len() {
            let slice = self.slice(index);
            let count = slice.len().min(bytes.len());
            slice.copy_from(&bytes[..count]);
            bytes = &bytes[count..];
        }
    }

    /// Fills all of it from `file` at `position`.
    ///
    /// # Errors
    /// What `preadv` answers; `UnexpectedEof` when the file ends early.
    pub(super) fn read_at(&mut self, file: &File, position: u64) -> io::Result<()> {
        self.transfer(position, io::ErrorKind::UnexpectedEof, |segments, count, offset| {
            // SAFETY: the segments lie in guest memory that stays mapped (the type's invariant) and that the device
            // may write at any time.
            unsafe { libc::preadv(file.as_raw_fd(), segments, count, offset) }
        })
    }

    /// Writes all of it to `file` at `position`.
    ///
    /// # Errors
    /// What `pwritev` answers; `WriteZero` when the file takes nothing more.
    pub(super) fn write_at(&mut self, file: &File, position: u64) -> io::Result<()> {
        self.transfer(position, io::ErrorKind::WriteZero, |segments, count, offset| {
            // SAFETY: the segments lie in guest memory that stays mapped (the type's invariant); they are only read.
            unsafe { libc::pwritev(file.as_raw_fd(), segments, count, offset) }
        })
    }

    fn transfer(
        &mut self,
        mut position: u64,
        at_end: io::ErrorKind,
        call: impl Fn(*const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<()> {
        while self.len > 0 {
            let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
            let count = i32::try_from(self.segments.len()).map_err(invalid)?;
            let offset = i64::try_from(position).map_err(invalid)?;
            match usize::try_from(call(self.segments.as_ptr(), count, offset)) {
                Ok(0) => return Err(at_end.into()),
                Ok(done) => {
                    self.advance(done);
                    position += done as u64;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Drops the first `count` bytes.
    fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        let mut whole = 0;
        for segment in &mut self.segments {
            if segment.iov_len > left {
                segment.iov_base = segment.iov_base.wrapping_byte_add(left);
                segment.iov_len -= left;
                break;
            }
            left -= segment.iov_len;
            whole += 1;
        }
        self.segments.drain(..whole);
    }

    fn push(&mut self, slice: &VolatileSlice<'_>) -> Option<()> {
        if self.segments.len() == MAX_SEGMENTS {
            return None;
        }
        let base = slice.ptr_guard_mut().as_ptr().cast();
        self.segments.push(libc::iovec {
            iov_base: base,
            iov_len: slice.len(),
        });
        self.len = self.len.checked_add(slice.len())?;
        Some(())
    }

    fn slice(&self, index: usize) -> VolatileSlice<'_> {
        let segment = &self.segments[index];
        // SAFETY: the segment lies in memory that stays mapped (the type's invariant), and `VolatileSlice` is made for
        // memory that others change.
        unsafe { VolatileSlice::new(segment.iov_base.cast(), segment.iov_len) }
    }
}
