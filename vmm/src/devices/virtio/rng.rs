//! virtio-rng: random bytes for the guest (virtio 1.2, section 5.4).

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use super::interrupt::Interrupt;
use super::notification;
use super::wakeup::ActivationWakeup;
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes given for one request at most: a driver asks again, and no request holds the device long.
const MAX_REQUEST: usize = 4096;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    wakeup: ActivationWakeup,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    requests: ActiveQueue,
}

impl Rng {
    /// An inactive device.
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            wakeup: ActivationWakeup::new()?,
            active: None,
        })
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
        let Activation {
            memory,
            interrupt,
            mut queues,
            ..
        } = activation;
        let requests = queues
            .pop()
            .ok_or(ActivateError::MissingQueues { ready: 0, needed: 1 })?;
        self.active = Some(Active {
            memory,
            interrupt,
            requests,
        });
        self.wakeup.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.wakeup.wake();
    }
}

impl MutEventSubscriber for Rng {
    fn init(&mut self, ops: &mut EventOps) {
        self.wakeup.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.wakeup.is_source_of(&events) {
            self.wakeup
                .update_kicks(ops, self.active.iter().map(|active| &active.requests.kick));
        }
        if let Some(active) = &mut self.active {
            // An empty counter: the wake-up came first.
            let _ = active.requests.kick.read();
            let Active {
                memory,
                interrupt,
                requests,
            } = active;
            notification::serve(requests, memory, interrupt, |chain| fill(memory, chain));
        }
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
