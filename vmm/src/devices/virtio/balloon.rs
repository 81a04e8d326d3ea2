//! virtio-balloon: gives memory that the guest does not use back to the host (virtio 1.2, section 5.5).
//!
//! Only free page reporting: the driver names free pages, and they lose their content and their place in the host's
//! memory, until the guest touches them again. The host never asks for pages (`num_pages` stays 0), so nothing that comes
//! by the other two queues means anything; a driver that fills them gets its buffers back.
//!
//! A page of a VM that was restored has the content of the snapshot again. The driver may not expect any
//! (`VIRTIO_BALLOON_F_PAGE_POISON` is not offered), and does not report pages when it does.

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::mm::{Advice, madvise};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueState};
use vm_memory::GuestMemoryBackend;

use super::device::{ActivateError, Activation, VirtioDevice};
use super::request_queues::RequestQueues;
use crate::memory::GuestMemory;

/// Inflate, deflate, reporting. The numbers are those of the queues that exist, without holes for those that do not.
const QUEUE_SIZES: [u16; 3] = [64; 3];
const REPORTING: usize = 2;
/// `VIRTIO_BALLOON_F_REPORTING`, section 5.5.3.
const F_REPORTING: u32 = 5;
/// Bytes of a page of the host.
const PAGE: usize = 4096;

/// The balloon device.
#[derive(Debug)]
pub struct Balloon(RequestQueues);

impl Balloon {
    /// An inactive device.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        RequestQueues::new().map(Self)
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << F_REPORTING | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// All zeros: `num_pages` and what the driver says it gave (`actual`), which is nothing.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.0.activate(activation)
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.0.states()
    }
}

impl MutEventSubscriber for Balloon {
    fn init(&mut self, ops: &mut EventOps) {
        self.0.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.0.process(events, ops, |queue, memory, chain| {
            if queue == REPORTING {
                give_back(memory, chain);
            }
            0
        });
    }
}

/// Gives the pages that `chain` names back to the host.
fn give_back(memory: &GuestMemory, chain: DescriptorChain<&GuestMemory>) {
    for pages in chain.writable() {
        give_back_pages(memory, &pages);
    }
}

/// What is not whole pages of one piece of guest memory is left alone.
fn give_back_pages(memory: &GuestMemory, pages: &Descriptor) {
    let Ok(len) = usize::try_from(pages.len()) else { return };
    let Ok(slice) = memory.get_slice(pages.addr(), len) else {
        return;
    };
    let start = slice.ptr_guard_mut();
    if len == 0 || !len.is_multiple_of(PAGE) || !start.as_ptr().addr().is_multiple_of(PAGE) {
        return;
    }
    // SAFETY: the range is guest memory, as `get_slice` has checked, which is a private mapping that nothing of this
    // process refers to but by volatile accesses; it stays mapped, with other content.
    let given = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontNeed) };
    if let Err(error) = given {
        // The guest keeps what it offered. It may offer as often as it likes.
        tracing::debug!(%error, "the host does not take back a guest's pages");
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory;

    const QUEUE_MIB: u64 = 31;
    const MIB: u64 = 1 << 20;

    /// A guest's memory filled with ones, after the pieces were reported in one chain: the first byte of each page is told
    /// by `byte`.
    struct Guest {
        memory: GuestMemory,
        _mappings: memory::Mappings,
    }

    impl Guest {
        fn new() -> Self {
            let (memory, mappings) = memory::allocate(memory::MIN_MIB, None).unwrap();
            for page in 0..QUEUE_MIB * MIB / PAGE as u64 {
                memory.write_obj(1u8, GuestAddress(page * PAGE as u64)).unwrap();
            }
            Self {
                memory,
                _mappings: mappings,
            }
        }

        fn report(&self, pieces: &[(u64, u32)]) {
            let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
            let descriptors: Vec<_> = pieces
                .iter()
                .map(|(address, len)| RawDescriptor::from(Descriptor::new(*address, *len, write, 0)))
                .collect();
            let queue = MockSplitQueue::create(&self.memory, GuestAddress(QUEUE_MIB * MIB), 16);
            give_back(&self.memory, queue.build_desc_chain(&descriptors).unwrap());
        }

        fn byte(&self, address: u64) -> u8 {
            self.memory.read_obj(GuestAddress(address)).unwrap()
        }
    }

    #[test]
    fn pages_that_are_reported_lose_their_content_and_no_others_do() {
        let guest = Guest::new();
        guest.report(&[(2 * MIB, 2 << 20), (8 * MIB, 4096)]);
        for (address, expected) in [
            (2 * MIB - 4096, 1),
            (2 * MIB, 0),
            (4 * MIB - 4096, 0),
            (4 * MIB, 1),
            (8 * MIB, 0),
            (8 * MIB + 4096, 1),
        ] {
            assert_eq!(guest.byte(address), expected, "{address:#x}");
        }
    }

    #[test]
    fn what_is_no_whole_page_or_no_memory_is_left_alone() {
        let guest = Guest::new();
        let end = u64::from(memory::MIN_MIB) * MIB;
        guest.report(&[
            (2 * MIB + 1, 4096),
            (3 * MIB, 4095),
            (4 * MIB, 0),
            (end - 4096, 8192),
            (end, 4096),
            (u64::MAX - 4095, 4096),
            (5 * MIB, u32::MAX),
        ]);
        for page in 0..QUEUE_MIB * MIB / PAGE as u64 {
            assert_eq!(guest.byte(page * PAGE as u64), 1, "page {page}");
        }
    }
}
