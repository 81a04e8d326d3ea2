//! virtio-block: a raw image or block device as the guest's disk (virtio 1.2, section 5.2).
//!
//! It has an event loop of its own: a slow disk delays no other device.

mod disk;
mod request;
mod scatter;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::device::{ActivateError, Activation, VirtioDevice, read_config_space};
use super::request_queues::RequestQueues;
use crate::config::DiskConfig;
use disk::Disk;
use request::Requests;

pub use disk::BlockError;

const QUEUE_SIZES: [u16; 1] = [256];
/// Data segments of one request: what is left of a queue-sized chain after header and status.
const MAX_SEGMENTS: u32 = 254;

/// `capacity`, `size_max` and `seg_max` of `struct virtio_blk_config`.
type ConfigSpace = [u8; 16];

/// A disk of the guest.
#[derive(Debug)]
pub struct Block {
    config: ConfigSpace,
    disk: Disk,
    requests: Requests,
    queue: RequestQueues,
}

impl Block {
    /// Opens and locks the image of `config`; the device is inactive.
    ///
    /// # Errors
    /// When the image cannot be opened, has no whole number of sectors, or is in use.
    pub fn open(config: &DiskConfig) -> Result<Self, BlockError> {
        let disk = Disk::open(config)?;
        let mut space = ConfigSpace::default();
        space[..8].copy_from_slice(&disk.sectors().to_le_bytes());
        space[12..].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        let queue = RequestQueues::new().map_err(|source| BlockError::Open {
            path: config.path.clone(),
            source,
        })?;
        Ok(Self {
            config: space,
            disk,
            requests: Requests::default(),
            queue,
        })
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        let read_only = u64::from(self.disk.is_read_only()) << VIRTIO_BLK_F_RO;
        read_only
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.queue.activate(activation)
    }

    fn reset(&mut self) {
        self.queue.reset();
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.queue.states()
    }
}

impl MutEventSubscriber for Block {
    fn init(&mut self, ops: &mut EventOps) {
        self.queue.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let Self {
            disk, requests, queue, ..
        } = self;
        queue.process(events, ops, |_, memory, chain| requests.serve(disk, memory, chain));
    }
}

#[cfg(test)]
mod tests;
