//! Guest memory as system calls take it: a list of segments.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::header::{HEADER_SIZE, MAX_PAYLOAD};
use crate::memory::GuestMemory;

/// The most segments of one packet: what `sendmsg` takes (`UIO_MAXIOV`), and four times what a queue of 256 can
/// describe without indirect descriptors.
const MAX_SEGMENTS: usize = 1024;

/// Why a descriptor chain is no packet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ChainError {
    /// The chain ends before the header does.
    #[error("the descriptor chain has {len} bytes, less than a packet header")]
    NoHeader {
        /// Bytes in the chain.
        len: usize,
    },
    /// A descriptor is for the other direction.
    #[error("a descriptor at {addr:#x} is for the other direction")]
    WrongDirection {
        /// Its guest physical address.
        addr: u64,
    },
    /// A descriptor lies outside guest memory.
    #[error("a descriptor of {len} bytes at {addr:#x} is outside guest memory")]
    OutsideMemory {
        /// Its guest physical address.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// The chain has more segments than a system call takes.
    #[error("the descriptor chain has more than {MAX_SEGMENTS} segments")]
    TooManySegments,
}

/// Whether the device reads or writes a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The driver's data for the device.
    Read,
    /// Room for the device's data.
    Write,
}

/// A list of segments that is filled again for each packet, so that packets allocate nothing.
#[derive(Debug)]
pub(super) struct Segments {
    iov: Vec<libc::iovec>,
}

impl Segments {
    /// An empty list with room for the usual packet.
    pub(super) fn new() -> Self {
        Self {
            iov: Vec::with_capacity(32),
        }
    }

    /// The header and the payload area of the packet in `chain`.
    ///
    /// The payload area ends at the end of the chain, or at [`MAX_PAYLOAD`].
    ///
    /// # Errors
    /// When the chain is no packet; nothing has been read or written then.
    pub(super) fn map<'a>(
        &'a mut self,
        memory: &'a GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        access: Access,
    ) -> Result<(GuestBuf<'a>, GuestBuf<'a>), ChainError> {
        self.iov.clear();
        let mut total = 0;
        let mut header_segments = 0;
        for descriptor in chain {
            let addr = descriptor.addr();
            if descriptor.is_write_only() != (access == Access::Write) {
                return Err(ChainError::WrongDirection { addr: addr.0 });
            }
            let outside = || ChainError::OutsideMemory {
                addr: addr.0,
                len: descriptor.len(),
            };
            let room = HEADER_SIZE + MAX_PAYLOAD - total;
            let len = usize::try_from(descriptor.len()).map_err(|_| outside())?.min(room);
            for slice in memory.get_slices(addr, len) {
                let slice = slice.map_err(|_| outside())?;
                let header_left = HEADER_SIZE.saturating_sub(total).min(slice.len());
                if header_left > 0 {
                    self.push(&slice, 0, header_left)?;
                    header_segments = self.iov.len();
                }
                if header_left < slice.len() {
                    self.push(&slice, header_left, slice.len() - header_left)?;
                }
                total += slice.len();
            }
        }
        if total < HEADER_SIZE {
            return Err(ChainError::NoHeader { len: total });
        }
        let (header, payload) = self.iov.split_at_mut(header_segments);
        Ok((
            GuestBuf::new(header, HEADER_SIZE),
            GuestBuf::new(payload, total - HEADER_SIZE),
        ))
    }

    fn push(&mut self, slice: &VolatileSlice<'_>, offset: usize, len: usize) -> Result<(), ChainError> {
        if self.iov.len() == MAX_SEGMENTS {
            return Err(ChainError::TooManySegments);
        }
        self.iov.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().wrapping_add(offset).cast(),
            iov_len: len,
        });
        Ok(())
    }
}

/// A stretch of bytes in guest memory. The guest can change them at any time.
///
/// Invariant: each segment lies in memory that stays mapped for `'a`, and their lengths add up to `len`.
#[derive(Debug)]
pub(super) struct GuestBuf<'a> {
    iov: &'a mut [libc::iovec],
    len: usize,
    memory: PhantomData<&'a GuestMemory>,
}

impl<'a> GuestBuf<'a> {
    fn new(iov: &'a mut [libc::iovec], len: usize) -> Self {
        Self {
            iov,
            len,
            memory: PhantomData,
        }
    }

    /// Bytes in the buffer.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Cuts the buffer to its first `len` bytes, if it is longer.
    pub(super) fn truncate(&mut self, len: usize) {
        let (segments, last_len) = self.end_of(len);
        let (iov, _) = std::mem::take(&mut self.iov).split_at_mut(segments);
        if let Some(last) = iov.last_mut() {
            last.iov_len = last_len;
        }
        self.iov = iov;
        self.len = self.len.min(len);
    }

    /// Copies the bytes from `offset` on to `to`; returns how many there were.
    pub(super) fn copy_to(&self, offset: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices(offset) {
            if done == to.len() {
                break;
            }
            done += slice.copy_to(&mut to[done..]);
        }
        done
    }

    /// Copies `from` to the beginning of the buffer, as far as it goes.
    pub(super) fn copy_from(&self, from: &[u8]) {
        let mut left = from;
        for slice in self.slices(0) {
            let n = left.len().min(slice.len());
            slice.copy_from(&left[..n]);
            left = &left[n..];
        }
    }

    /// Sends the buffer on a stream socket without blocking and without `SIGPIPE`; returns how much was taken.
    ///
    /// # Errors
    /// What `sendmsg(2)` says, `WouldBlock` included.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let message = message(self.iov);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: `message` points to segments that are mapped while `self` lives, and to nothing else; the kernel
        // only reads them.
        let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Fills at most the first `limit` bytes of the buffer from a stream socket without blocking; returns how much
    /// came, 0 at its end.
    ///
    /// # Errors
    /// What `recvmsg(2)` says, `WouldBlock` included.
    pub(super) fn recv(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let (segments, last_len) = self.end_of(limit);
        let (iov, _) = self.iov.split_at_mut(segments);
        let Some(last) = iov.last_mut() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let whole_len = std::mem::replace(&mut last.iov_len, last_len);
        let mut message = message(iov);
        // SAFETY: `message` points to segments of guest memory that are mapped while `self` lives, to which the
        // device may write at any time, and to nothing else.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let result = usize::try_from(n).map_err(|_| io::Error::last_os_error());
        if let Some(last) = iov.last_mut() {
            last.iov_len = whole_len;
        }
        result
    }

    /// How many segments the first `len` bytes take, and how much of the last of them.
    fn end_of(&self, len: usize) -> (usize, usize) {
        let mut left = len.min(self.len);
        let mut last_len = 0;
        let mut segments = 0;
        while left > 0 {
            last_len = self.iov[segments].iov_len.min(left);
            left -= last_len;
            segments += 1;
        }
        (segments, last_len)
    }

    /// The segments from `offset` on.
    fn slices(&self, offset: usize) -> impl Iterator<Item = VolatileSlice<'_>> {
        let mut skip = offset;
        self.iov.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.iov_len);
            skip -= skipped;
            let start = segment.iov_base.cast::<u8>().wrapping_add(skipped);
            (skipped < segment.iov_len).then(|| {
                // SAFETY: the rest of the segment lies in memory that stays mapped for `'a` (the type's invariant),
                // and `VolatileSlice` is made for memory that others change.
                unsafe { VolatileSlice::new(start, segment.iov_len - skipped) }
            })
        })
    }
}

fn message(iov: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.as_mut_ptr();
    message.msg_iovlen = iov.len();
    message
}

#[cfg(test)]
pub(super) mod tests {
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// Runs `f` on a payload buffer of guest memory that holds `bytes`, and returns what it holds afterwards.
    pub(in super::super) fn with_guest_buf<R>(bytes: &[u8], f: impl FnOnce(GuestBuf<'_>) -> R) -> (R, Vec<u8>) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_slice(bytes, GuestAddress(0x1_0000)).unwrap();
        let mut segments = Segments::new();
        for slice in memory.get_slices(GuestAddress(0x1_0000), bytes.len()) {
            segments.push(&slice.unwrap(), 0, bytes.len()).unwrap();
        }
        let result = f(GuestBuf::new(&mut segments.iov, bytes.len()));
        let mut after = vec![0; bytes.len()];
        memory.read_slice(&mut after, GuestAddress(0x1_0000)).unwrap();
        (result, after)
    }

    fn memory() -> GuestMemory {
        // Two regions that touch, so that a descriptor can cross from one to the other.
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x2_0000), (GuestAddress(0x2_0000), 0x2_0000)]).unwrap()
    }

    fn chain(parts: &[(u64, u32)], flags: u32) -> Vec<RawDescriptor> {
        let flags = u16::try_from(flags).unwrap();
        let next = u16::try_from(VRING_DESC_F_NEXT).unwrap();
        let last = parts.len() - 1;
        (0u16..)
            .zip(parts)
            .map(|(i, (addr, len))| {
                let more = if usize::from(i) == last { 0 } else { next };
                RawDescriptor::from(split::Descriptor::new(*addr, *len, flags | more, i + 1))
            })
            .collect()
    }

    fn map_sizes(parts: &[(u64, u32)], flags: u32, access: Access) -> Result<(usize, usize), ChainError> {
        let memory = memory();
        let queue = MockSplitQueue::new(&memory, 64);
        let chain = queue.build_multiple_desc_chains(&chain(parts, flags)).unwrap();
        let mut segments = Segments::new();
        let (header, payload) = segments.map(&memory, chain, access)?;
        Ok((header.len(), payload.len()))
    }

    #[test]
    fn the_header_is_cut_off_wherever_the_descriptors_end() {
        let whole: &[(u64, u32)] = &[(0x1_0000, 144)];
        let exact = &[(0x1_0000, 44), (0x1_1000, 100)];
        let crumbs = &[
            (0x1_0000, 1),
            (0x1_1000, 0),
            (0x1_2000, 42),
            (0x1_3000, 10),
            (0x1_4000, 91),
        ];
        for parts in [whole, exact, crumbs] {
            assert_eq!(map_sizes(parts, 0, Access::Read), Ok((44, 100)));
        }
    }

    #[test]
    fn bytes_keep_their_order_across_segments_and_regions() {
        let memory = memory();
        let bytes: Vec<u8> = (0..=199).collect();
        memory.write_slice(&bytes[..20], GuestAddress(0x1_0000)).unwrap();
        memory.write_slice(&bytes[20..], GuestAddress(0x1_fff0)).unwrap();
        let queue = MockSplitQueue::new(&memory, 16);
        let descriptors = chain(&[(0x1_0000, 20), (0x1_fff0, 180)], 0);
        let chain = queue.build_multiple_desc_chains(&descriptors).unwrap();
        let mut segments = Segments::new();
        let (header, payload) = segments.map(&memory, chain, Access::Read).unwrap();

        let mut head = [0; HEADER_SIZE];
        assert_eq!(header.copy_to(0, &mut head), HEADER_SIZE);
        let mut tail = [0; 200];
        assert_eq!(payload.copy_to(6, &mut tail), 150);

        assert_eq!(head[..], bytes[..44]);
        assert_eq!(tail[..150], bytes[50..]);
    }

    #[test]
    fn a_chain_that_is_no_packet_is_refused() {
        assert_eq!(
            map_sizes(&[(0x1_0000, 43)], 0, Access::Read),
            Err(ChainError::NoHeader { len: 43 })
        );
        assert_eq!(
            map_sizes(&[(0x3_fff0, 144)], 0, Access::Read),
            Err(ChainError::OutsideMemory {
                addr: 0x3_fff0,
                len: 144
            })
        );
        assert_eq!(
            map_sizes(&[(u64::MAX - 10, 144)], 0, Access::Read),
            Err(ChainError::OutsideMemory {
                addr: u64::MAX - 10,
                len: 144
            })
        );
        assert_eq!(
            map_sizes(&[(0x1_0000, 144)], VRING_DESC_F_WRITE, Access::Read),
            Err(ChainError::WrongDirection { addr: 0x1_0000 })
        );
        assert_eq!(
            map_sizes(&[(0x1_0000, 144)], 0, Access::Write),
            Err(ChainError::WrongDirection { addr: 0x1_0000 })
        );
    }

    #[test]
    fn the_payload_area_is_bounded() {
        assert_eq!(
            map_sizes(&[(0x1_0000, 0x2_0000)], 0, Access::Read),
            Ok((44, MAX_PAYLOAD))
        );
    }

    #[test]
    fn truncating_leaves_the_first_bytes() {
        let ((), _) = with_guest_buf(b"hello world", |mut buf| {
            buf.truncate(20);
            assert_eq!(buf.len(), 11);
            buf.truncate(5);
            let mut out = [0; 11];
            assert_eq!(buf.copy_to(0, &mut out), 5);
            assert_eq!(&out[..5], b"hello");
        });
    }
}
