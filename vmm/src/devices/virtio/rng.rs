//! virtio-rng: random bytes for the guest (virtio 1.2, section 5.4).

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueState};
use vm_memory::{Bytes, GuestAddress};

use super::device::{ActivateError, Activation, VirtioDevice};
use super::request_queues::RequestQueues;
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes given for one request at most: a driver asks again, and no request holds the device long.
const MAX_REQUEST: usize = 4096;

/// The entropy device.
#[derive(Debug)]
pub struct Rng(RequestQueues);

impl Rng {
    /// An inactive device.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        RequestQueues::new().map(Self)
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

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

impl MutEventSubscriber for Rng {
    fn init(&mut self, ops: &mut EventOps) {
        self.0.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.0.process(events, ops, |_, memory, chain| fill(memory, chain));
    }
}

/// Fills the writable descriptors of `chain`, up to [`MAX_REQUEST`] bytes; returns how many were given.
fn fill(memory: &GuestMemory, chain: DescriptorChain<&GuestMemory>) -> u32 {
    let mut random = [0; 256];
    let mut given = 0;
    for descriptor in chain.writable() {
        let wanted = usize::try_from(descriptor.len())
            .unwrap_or(MAX_REQUEST)
            .min(MAX_REQUEST - given);
        let mut address = Some(descriptor.addr());
        for offset in (0..wanted).step_by(random.len()) {
            let piece = &mut random[..(wanted - offset).min(256)];
            let written = address.is_some_and(|address| {
                rustix::rand::getrandom(&mut *piece, rustix::rand::GetRandomFlags::empty()) == Ok(piece.len())
                    && memory.write_slice(piece, address).is_ok()
            });
            if !written {
                return given.try_into().unwrap_or(0);
            }
            given += piece.len();
            address = address
                .and_then(|address: GuestAddress| address.0.checked_add(256))
                .map(GuestAddress);
        }
    }
    given.try_into().unwrap_or(0)
}
