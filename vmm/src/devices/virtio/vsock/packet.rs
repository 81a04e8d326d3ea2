//! Packets in descriptor chains.

use virtio_queue::DescriptorChain;

use super::guest_buf::{Access, ChainError, GuestBuf, Segments};
use super::header::{HEADER_SIZE, Header};
use crate::memory::GuestMemory;

/// [`HEADER_SIZE`] as the used ring counts.
const HEADER_LEN: u32 = 44;
const _: () = assert!(HEADER_LEN as usize == HEADER_SIZE);

/// A packet from the guest. The header is the device's own copy: what was checked stays as it was.
#[derive(Debug)]
pub(super) struct TxPacket<'a> {
    /// The header.
    pub(super) header: Header,
    /// Exactly `header.len` bytes; `None` when the chain has fewer.
    pub(super) payload: Option<GuestBuf<'a>>,
}

impl<'a> TxPacket<'a> {
    /// Reads the header of the packet in `chain` and finds its payload.
    ///
    /// # Errors
    /// When the chain has no header to answer to.
    pub(super) fn parse(
        segments: &'a mut Segments,
        memory: &'a GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
    ) -> Result<Self, ChainError> {
        let (header, mut payload) = segments.map(memory, chain, Access::Read)?;
        let mut bytes = [0; HEADER_SIZE];
        header.copy_to(0, &mut bytes);
        let header = Header::decode(&bytes);
        let payload = usize::try_from(header.len)
            .ok()
            .filter(|len| *len <= payload.len())
            .map(|len| {
                payload.truncate(len);
                payload
            });
        Ok(Self { header, payload })
    }
}

/// Room for a packet to the guest.
#[derive(Debug)]
pub(super) struct RxBuffer<'a> {
    header: GuestBuf<'a>,
    /// Where the payload goes.
    pub(super) payload: GuestBuf<'a>,
}

impl<'a> RxBuffer<'a> {
    /// The room in `chain`.
    ///
    /// # Errors
    /// When there is none for a header and at least one byte.
    pub(super) fn parse(
        segments: &'a mut Segments,
        memory: &'a GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
    ) -> Result<Self, ChainError> {
        let (header, payload) = segments.map(memory, chain, Access::Write)?;
        if payload.len() == 0 {
            return Err(ChainError::NoHeader { len: HEADER_SIZE });
        }
        Ok(Self { header, payload })
    }

    /// Writes the header; returns the length of the whole packet for the used ring.
    pub(super) fn commit(&self, header: &Header) -> u32 {
        self.header.copy_from(&header.encode());
        header.len.saturating_add(HEADER_LEN)
    }
}
