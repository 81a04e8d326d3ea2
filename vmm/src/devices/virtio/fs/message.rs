//! Requests and answers in the guest's memory.

use std::io::Read as _;

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes as _;

use crate::memory::GuestMemory;

/// Bytes of a message at most: what the server lets one request move (128 KiB), with room for headers and names.
pub(super) const MAX_MESSAGE: usize = (128 << 10) + 8192;

/// Bytes of `struct fuse_in_header`.
const IN_HEADER: usize = 40;

/// Bytes of `struct fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;

/// `FUSE_FORGET` and `FUSE_BATCH_FORGET`: all requests that have no answer.
const UNANSWERED: [u32; 2] = [2, 42];

// Requests that tell the size of a part of them, or a time.
const SETATTR: u32 = 4;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const IOCTL: u32 = 39;

/// A request that is true about its length and those of its parts.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// What the readable descriptors of `chain` hold, if that is a request.
    pub(super) fn of_chain(memory: &GuestMemory, chain: DescriptorChain<&GuestMemory>) -> Option<Self> {
        let mut reader = chain.reader::<()>(memory).ok()?;
        let length = reader.available_bytes();
        if length > MAX_MESSAGE {
            return None;
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).ok()?;
        Self::new(bytes)
    }

    /// All of `bytes`, if that is a request.
    pub(super) fn new(bytes: Vec<u8>) -> Option<Self> {
        if !(IN_HEADER..=MAX_MESSAGE).contains(&bytes.len()) {
            return None;
        }
        let request = Self { bytes };
        (request.word(0) as usize == request.bytes.len() && request.is_consistent()).then_some(request)
    }

    /// Whether its parts are as it says. `fuser` takes what is not for a kernel's bug, and panics. What is too short to say
    /// anything the server refuses.
    fn is_consistent(&self) -> bool {
        let body = &self.bytes[IN_HEADER..];
        match self.word(4) {
            // Seconds and nanoseconds of the last access, modification and change.
            SETATTR => [(32, 56), (40, 60), (48, 64)].into_iter().all(|(seconds, fraction)| {
                let is_earliest = at(body, seconds).map(i64::from_le_bytes) == Some(i64::MIN);
                let end = if is_earliest { 1 } else { 1_000_000_000 };
                at(body, fraction).is_none_or(|fraction| u32::from_le_bytes(fraction) < end)
            }),
            WRITE => body.get(40..).is_none_or(|data| size_at(body, 16) == data.len()),
            SETXATTR => {
                let mut name_and_value = body.get(8..).unwrap_or_default().splitn(2, |byte| *byte == 0);
                let value = name_and_value.nth(1);
                value.is_none_or(|value| size_at(body, 0) == value.len())
            }
            IOCTL => body.get(32..).is_none_or(|data| size_at(body, 24) <= data.len()),
            _ => true,
        }
    }

    /// A word of the header.
    fn word(&self, offset: usize) -> u32 {
        let word = self.bytes[offset..].first_chunk();
        u32::from_le_bytes(*word.expect("a request is no shorter than its header"))
    }

    /// What its answer must carry.
    pub(super) fn unique(&self) -> [u8; 8] {
        let unique = self.bytes[8..].first_chunk();
        *unique.expect("a request is no shorter than its header")
    }

    /// Whether there will be an answer to it.
    pub(super) fn is_answered(&self) -> bool {
        !UNANSWERED.contains(&self.word(4))
    }

    /// As it is sent.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn at<const N: usize>(body: &[u8], offset: usize) -> Option<[u8; N]> {
    body.get(offset..)?.first_chunk().copied()
}

/// The size that is told at `offset`, which is in `body`.
fn size_at(body: &[u8], offset: usize) -> usize {
    at(body, offset).map_or(0, |size| u32::from_le_bytes(size) as usize)
}

/// The answer that an input or output error is.
pub(super) fn failure(unique: [u8; 8]) -> Vec<u8> {
    const EIO: i32 = 5;
    let length = u32::try_from(OUT_HEADER).expect("16 fits");
    [&length.to_le_bytes()[..], &(-EIO).to_le_bytes(), &unique].concat()
}

/// Whether `answer` is one to the request `unique`.
pub(super) fn answers(answer: &[u8], unique: [u8; 8]) -> bool {
    let length = answer.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
    length == Some(answer.len()) && answer.get(8..OUT_HEADER) == Some(&unique)
}

/// Where the driver wants an answer.
#[derive(Debug)]
pub(super) struct Place {
    head: u16,
    writable: Vec<Descriptor>,
}

impl Place {
    /// The writable descriptors of `chain`; a table of its own has no more than 65,535 of them.
    pub(super) fn of_chain(chain: DescriptorChain<&GuestMemory>) -> Self {
        Self {
            head: chain.head_index(),
            writable: chain.writable().collect(),
        }
    }

    /// The chain's first descriptor.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Writes `answer` there, and returns how many bytes that were. Where an answer does not fit, or its memory is none, the
    /// driver broke its own request: it gets as much as can be.
    pub(super) fn write(&self, memory: &GuestMemory, answer: &[u8]) -> u32 {
        let mut left = answer;
        for descriptor in &self.writable {
            let (piece, rest) = left.split_at(left.len().min(descriptor.len() as usize));
            if memory.write_slice(piece, descriptor.addr()).is_err() {
                break;
            }
            left = rest;
        }
        u32::try_from(answer.len() - left.len()).unwrap_or(u32::MAX)
    }
}
